"""A thousand streaming clients at once, of which a tenth leave and a twentieth talk nonsense; and ranks that die.

``superscaler serve`` with a tiny Llama under ``tp=2``, over loopback. Clients ask for drawn answers of their own seeds;
what each is given is compared with an engine in this process that serves the same requests. Then the same with fewer
clients, while ranks of the engine are killed. Goal: every answer right; every client that asked for nonsense told so
with an error of the 400s; nobody left without an end within the limit; afterwards no sequence and no page in use.
"""

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import finish, parse_arguments
from benchmarks.served import ranks_below
from superscaler.cli import main as superscaler
from superscaler.runtime.serving.offline import load_engine
from superscaler.runtime.serving.request import Request
from superscaler.runtime.serving.sampling_params import SamplingParams

ROOT = Path(__file__).parents[1]
CLIENTS, AMONG_DEATHS, DEATHS = 1000, 200, 3
LEAVING, MALFORMED = 0.1, 0.05
LIMIT = 300.0
"""Seconds after which a client that has heard no end gives up."""
VOCAB = 256
MODEL = ("models/llama.py:tiny", "--dtype", "float64", "--cache-tokens", "16384")
NONSENSE: tuple[bytes, ...] = (
    b"{", b"[]", b"\xff\xfe", b'{"prompt": [1], "max_tokens": -1}', b'{"prompt": [[1], "a"]}', b'{"max_tokens": 4}',
    b'{"prompt": [1, 2], "temperature": "hot"}', b'{"prompt": [99999]}', b'{"prompt": [1], "n": 0}',
    b'{"prompt": [1], "max_tokens": 100000000}', b'{"prompt": [1], "top_p": 7}', b'{"prompt": []}',
)  # fmt: skip


@dataclass
class Heard:
    """What a client was answered."""

    status: int = 0
    tokens: list[int] = field(default_factory=list)
    is_whole: bool = False
    has_left: bool = False
    seconds: float = 0.0


def main() -> None:
    """Serve, and let clients come."""
    options = parse_arguments(__doc__ or "")
    torch.set_num_threads(1)
    clients, among, deaths = (100, 30, 1) if options.quick else (CLIENTS, AMONG_DEATHS, DEATHS)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        superscaler(["serve", *MODEL, "-o", str(home / "one"), "--compile-only"])
        two = ["--cluster", "local:2", "--plan", "tp=2", "-o", str(home / "two"), "--compile-only"]
        superscaler(["serve", *MODEL, *two])
        server, port = _start(home / "two")
        try:
            rows = [
                asyncio.run(
                    _round("clients that leave and talk nonsense", home, port, clients, 0, server.pid)
                ),
                asyncio.run(_round("ranks that die", home, port, among, deaths, server.pid)),
            ]
            server.send_signal(signal.SIGTERM)
            code = server.wait(60)
        finally:
            server.kill()
    ok = code == 0 and all(_is_fine(row) for row in rows)
    figures = {key: sum(row[key] for row in rows) for key in ("clients", "right", "wrong", "left", "refused")}
    slowest = max(row["slowest, s"] for row in rows)
    finish(
        "serve_chaos",
        ok,
        rows,
        options.quick,
        **figures,
        deaths=deaths,
        slowest_seconds=slowest,
        exit_code=code,
    )


def _is_fine(row: dict[str, Any]) -> bool:
    answered = row["right"] + row["left"] + row["refused"]
    return answered == row["clients"] and not (row["pages in use"] or row["sequences"])


async def _round(what: str, home: Path, port: int, clients: int, deaths: int, server: int) -> dict[str, Any]:
    chance = random.Random(what)
    order = [chance.random() for _ in range(clients)]
    kinds = ["leaves" if x < LEAVING else "nonsense" if x < LEAVING + MALFORMED else "stays" for x in order]
    most = 120 if deaths else 40  # long enough for a death to fall into them
    requests = [_request(chance, number, most) for number in range(clients)]
    began = time.perf_counter()
    work = [
        _client(port, request, kind, chance.random()) for request, kind in zip(requests, kinds, strict=True)
    ]
    killer = asyncio.create_task(_kill(server, deaths, chance))
    heard = await asyncio.gather(*work)
    seconds = time.perf_counter() - began
    await killer
    sequences, pages = await _until_idle(port)
    expected = _expected(
        home / "one", [r for r, kind in zip(requests, kinds, strict=True) if kind == "stays"]
    )
    by_kind = {
        kind: [one for one, own in zip(heard, kinds, strict=True) if own == kind] for kind in set(kinds)
    }
    stays = [number for number, kind in enumerate(kinds) if kind == "stays"]
    right = sum(heard[number].is_whole and heard[number].tokens == expected[str(number)] for number in stays)
    return {
        "what": what, "clients": clients, "right": right, "wrong": len(stays) - right,
        "left": sum(one.has_left for one in by_kind.get("leaves", [])),
        "refused": sum(400 <= one.status < 500 for one in by_kind.get("nonsense", [])),
        "deaths": deaths, "sequences": sequences, "pages in use": pages, "seconds": seconds,
        "slowest, s": max(one.seconds for one in heard),
    }  # fmt: skip


def _request(chance: random.Random, number: int, most: int) -> Request:
    prompt = tuple(chance.randrange(VOCAB) for _ in range(chance.randrange(4, 40)))
    params = SamplingParams(
        temperature=0.8, seed=number, max_tokens=chance.randrange(8, most), ignore_eos=True
    )
    return Request(str(number), prompt, params)


async def _client(port: int, request: Request, kind: str, patience: float) -> Heard:
    heard, began = Heard(), time.perf_counter()
    try:
        async with asyncio.timeout(LIMIT):
            await _talk(port, request, kind, patience, heard)
    except (OSError, EOFError, TimeoutError):
        pass  # what was heard until then counts
    heard.seconds = time.perf_counter() - began
    return heard


async def _talk(port: int, request: Request, kind: str, patience: float, heard: Heard) -> None:
    params = request.params
    body = json.dumps({
        "prompt": request.prompt, "temperature": params.temperature, "seed": params.seed, "ignore_eos": True,
        "max_tokens": params.max_tokens, "stream": True, "return_token_ids": True,
    }).encode()  # fmt: skip
    if kind == "nonsense":
        body = NONSENSE[int(patience * len(NONSENSE))]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        heard.status = int((await reader.readline()).split()[1])
        leave_after = int(patience * (params.max_tokens or 0))
        async for line in reader:
            if line.startswith(b"data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    heard.tokens += choice.get("token_ids") or []
            heard.is_whole = heard.is_whole or line.startswith(b"data: [DONE]")
            if kind == "leaves" and len(heard.tokens) >= leave_after:
                heard.has_left = True
                return
    finally:
        writer.close()


async def _kill(server: int, deaths: int, chance: random.Random) -> None:
    """Kill ranks, each some time after the engine has come back from the death of the one before."""
    dead: set[int] = set()
    for _ in range(deaths):
        while not (alive := [rank for rank in ranks_below(server) if rank not in dead]):
            await asyncio.sleep(0.1)
        await asyncio.sleep(chance.uniform(0.3, 1.0))
        victim = chance.choice(alive)
        dead.update(alive)
        os.kill(victim, signal.SIGKILL)


async def _until_idle(port: int) -> tuple[float, float]:
    """Sequences that run or wait, and the share of pages in use, once both are none, or after a while."""
    end = time.perf_counter() + 30
    while True:
        found = await _metrics(port)
        sequences = found["vllm:num_requests_running"] + found["vllm:num_requests_waiting"]
        pages = found["vllm:kv_cache_usage_perc"]
        if not (sequences or pages) or time.perf_counter() > end:
            return sequences, pages
        await asyncio.sleep(0.2)


async def _metrics(port: int) -> dict[str, float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    lines = (await reader.read()).decode().splitlines()
    writer.close()
    pairs = (
        line.split("{")[0].split(" ")[:1] + [line.rpartition(" ")[2]] for line in lines if line[:1] == "v"
    )
    return {name: float(value) for name, value in pairs}


def _expected(folder: Path, requests: list[Request]) -> dict[str, list[int]]:
    """What an engine in this process gives the same requests."""
    engine = load_engine(folder)
    found: dict[str, list[int]] = {request.id: [] for request in requests}
    for request in requests:
        engine.add(request)
    while not engine.is_idle:
        for output in engine.step():
            found[output.request_id] += output.tokens
    return found


def _start(folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    command = [sys.executable, "-m", "superscaler.cli", "serve", str(folder), "--port", "0", "--threads", "1"]
    log = folder / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--max-restarts", "10"], stdout=out, stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    while process.poll() is None:
        if found := re.search(r"http://127.0.0.1:(\d+)", log.read_text()):
            return process, int(found[1])
        time.sleep(0.1)
    raise RuntimeError(log.read_text())


if __name__ == "__main__":
    main()
