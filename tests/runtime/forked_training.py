"""Train a build on several ranks by its own entry point, each rank forked instead of started anew."""

import json
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from superscaler.runtime import launch
from tests.runtime.rank_server import rank_server

WAIT = 120


@dataclass
class Trained:
    codes: list[int]
    output: str
    errors: str


def train(folder: Path, ranks: int, *options: Any, patch: Callable[[], None] | None = None) -> Trained:
    """Run ``train.py`` of a build folder with these options, and wait for all ranks; each patches its process first."""
    context = rank_server()
    port = free_port()
    processes = [
        context.Process(
            target=_rank, args=(folder, rank, ranks, port, [str(option) for option in options], patch)
        )
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(WAIT)
        assert process.exitcode is not None, f"{process} hangs"
    texts = [
        "".join((folder / f"{stream}{rank}.txt").read_text() for rank in range(ranks))
        for stream in ("out", "err")
    ]
    return Trained([process.exitcode or 0 for process in processes], *texts)


def losses(folder: Path, ranks: int, *options: Any) -> list[float]:
    """Train, and the losses of the whole run."""
    path = folder / "losses.json"
    result = train(folder, ranks, "--losses", path, *options)
    assert result.codes == [0] * ranks, f"exit codes {result.codes}: {result.errors}"
    return json.loads(path.read_text())


def _rank(
    folder: Path, rank: int, ranks: int, port: int, options: list[str], patch: Callable[[], None] | None
) -> None:
    sys.stdout, sys.stderr = ((folder / f"{stream}{rank}.txt").open("w") for stream in ("out", "err"))
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    if patch:
        patch()
    launch.main(str(folder / "train.py"), ["--backend", "gloo", "--timeout", "60", *options])
    sys.stdout.flush()
    os._exit(0)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
