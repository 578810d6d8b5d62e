"""Run a function on several ranks over gloo, each a process of its own."""

import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.runtime.rank_server import rank_server


def run_ranks(function: Callable[..., Any], world_size: int, folder: Path, *arguments: Any) -> list[Any]:
    """``function(rank, *arguments)`` on every rank; their results, in order."""
    context = rank_server()
    processes = [
        context.Process(target=_run, args=(function, rank, world_size, str(folder), arguments))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    results = [torch.load(folder / f"result{rank}.pt", weights_only=False) for rank in range(world_size)]
    failures = [f"rank {rank}:\n{value}" for rank, (is_ok, value) in enumerate(results) if not is_ok]
    assert not failures, "\n".join(failures)
    return [value for _, value in results]


def _run(function: Callable[..., Any], rank: int, world_size: int, folder: str, arguments: tuple) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(folder, "store"), world_size)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=60)
    )
    try:
        result = (True, function(rank, *arguments))
    except BaseException:
        result = (False, traceback.format_exc())
    torch.save(result, os.path.join(folder, f"result{rank}.pt"))
    os._exit(0)
