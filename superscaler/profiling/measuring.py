"""Measuring: what a group of processes measures, in step, and what they find."""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist

from superscaler.profiling.call import Call
from superscaler.profiling.collectives import CollectiveTime, measure_collectives
from superscaler.profiling.timing import seconds_of
from superscaler.runtime.host_memory import keep_freed_memory

HOST_COPY_BYTES = 2**26
"""Of a copy to host memory."""


@dataclass(frozen=True, slots=True)
class Task:
    """What to measure."""

    backend: str
    calls: tuple[Call, ...]
    seconds_per_call: float
    sizes: tuple[int, ...]
    """Bytes of collectives."""
    runs: int
    """Of each collective."""


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured."""

    seconds: tuple[float | None, ...]
    """Per call; None: it could not be made with random values."""
    collectives: tuple[CollectiveTime, ...]
    host_bandwidth: float | None
    """Bytes per second to host memory; None of CPUs."""


def measure(task: Task) -> Result:
    """Measure as one of the ranks that torchrun started, or alone; all make the same calls at the same time."""
    if task.backend == "gloo":
        keep_freed_memory()
        device = torch.device("cpu")
    else:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group(task.backend)
    seconds = tuple(_seconds(call, device, task.seconds_per_call) for call in task.calls)
    host_bandwidth = _host_bandwidth(device) if device.type == "cuda" else None
    collectives: list[CollectiveTime] = []
    if dist.is_initialized():
        collectives = measure_collectives(device, task.sizes, task.runs)
        dist.destroy_process_group()
    return Result(seconds, tuple(collectives), host_bandwidth)


def _seconds(call: Call, device: torch.device, least_seconds: float) -> float | None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        try:
            run = call.prepared(device, generator)
            run()
        except (RuntimeError, IndexError, ValueError, TypeError):
            run = None
        if dist.is_initialized():
            dist.barrier()
        return seconds_of(run, device, least_seconds) if run else None


def _host_bandwidth(device: torch.device) -> float:
    values = torch.ones(HOST_COPY_BYTES // 4, device=device)
    there = torch.empty(values.shape, pin_memory=True)
    seconds = seconds_of(lambda: there.copy_(values, non_blocking=True), device, 0.1)
    return HOST_COPY_BYTES / seconds
