"""Learning rates that change with the step, which counts from 1."""

from collections.abc import Callable
from math import cos, pi
from typing import Any

Rate = float | tuple[Any, ...]
"""A number, or a schedule: the name of a function of this file, and its arguments behind the step."""


def constant_rate(step: Any, peak: float, warmup: int = 0) -> float:
    """Up to `peak` in equal parts over the first `warmup` steps, and there from then on."""
    return peak * min(1.0, int(step) / warmup) if warmup else peak


def linear_rate(step: Any, peak: float, warmup: int, total: int, floor: float = 0.0) -> float:
    """Up to `peak` over the first `warmup` steps, then down a line to `floor`, reached at step `total`."""
    if int(step) <= warmup:
        return constant_rate(step, peak, warmup)
    return peak + (floor - peak) * _progress(step, warmup, total)


def cosine_rate(step: Any, peak: float, warmup: int, total: int, floor: float = 0.0) -> float:
    """Up to `peak` over the first `warmup` steps, then down half a cosine to `floor`, reached at step `total`."""
    if int(step) <= warmup:
        return constant_rate(step, peak, warmup)
    return floor + (peak - floor) * (1 + cos(pi * _progress(step, warmup, total))) / 2


def _progress(step: Any, warmup: int, total: int) -> float:
    return min(1.0, (int(step) - warmup) / (total - warmup))


SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": constant_rate,
    "linear": linear_rate,
    "cosine": cosine_rate,
}


def learning_rate(rate: Rate, step: Any) -> float:
    """The rate at a step."""
    if not isinstance(rate, tuple):
        return rate
    name, *arguments = rate
    return SCHEDULES[name](step, *arguments)
