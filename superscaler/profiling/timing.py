"""Timing: seconds of one call, from enough runs in a row."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

BATCHES = 5
"""How many times a number of runs is timed; the median counts."""


def seconds_of(call: Callable[[], Any], device: torch.device, least_seconds: float) -> float:
    """Seconds of one run, when runs follow one another; measured for about `least_seconds`."""
    call()
    once = _seconds_of_runs(call, device, 1)
    runs = max(1, round(least_seconds / BATCHES / max(once, 1e-7)))
    return median(_seconds_of_runs(call, device, runs) / runs for _ in range(BATCHES))


def _seconds_of_runs(call: Callable[[], Any], device: torch.device, runs: int) -> float:
    finish(device)
    start = time.perf_counter()
    for _ in range(runs):
        call()
    finish(device)
    return time.perf_counter() - start


def finish(device: torch.device) -> None:
    """Return once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
