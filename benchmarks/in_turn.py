"""Contenders in turn: steps of one process, each timed beside the others, so that what disturbs one disturbs all."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

WARM_UP = 3
"""Steps after which memory has grown to what a step needs."""


def time_in_turn(
    contenders: Mapping[str, Callable[[], Any]], steps: int, device: str
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of every step of each contender, and the loss of its first; who begins changes from round to round."""
    losses = {name: float(step()) for name, step in contenders.items()}
    for _ in range(WARM_UP):
        for step in contenders.values():
            step()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(steps):
        names = list(contenders)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = time.perf_counter()
            contenders[name]()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return seconds, losses
