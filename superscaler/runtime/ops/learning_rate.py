"""Learning rates that change with the step, which counts from 1.

The number of the step is one of Python's, or a whole number in a tensor on the device: then so is the rate, in float64,
and nothing waits for the device.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Rate = float | tuple[Any, ...]
"""A number, or a schedule: the name of a function of this file, and its arguments behind the step."""


def constant_rate(step: Any, peak: float, warmup: int = 0) -> Any:
    """Up to `peak` in equal parts over the first `warmup` steps, and there from then on."""
    return peak * _part(_number(step), warmup) if warmup else peak


def linear_rate(step: Any, peak: float, warmup: int, total: int, floor: float = 0.0) -> Any:
    """Up to `peak` over the first `warmup` steps, then down a line to `floor`, reached at step `total`."""
    number = _number(step)
    falling = peak + (floor - peak) * _part(number - warmup, total - warmup)
    return _choose(number <= warmup, constant_rate(step, peak, warmup), falling)


def cosine_rate(step: Any, peak: float, warmup: int, total: int, floor: float = 0.0) -> Any:
    """Up to `peak` over the first `warmup` steps, then down half a cosine to `floor`, reached at step `total`."""
    number = _number(step)
    angle = math.pi * _part(number - warmup, total - warmup)
    falling = floor + (peak - floor) * (1 + _cosine(angle)) / 2
    return _choose(number <= warmup, constant_rate(step, peak, warmup), falling)


SCHEDULES: dict[str, Callable[..., Any]] = {
    "constant": constant_rate,
    "linear": linear_rate,
    "cosine": cosine_rate,
}


def learning_rate(rate: Rate | Tensor, step: Any) -> Any:
    """The rate at a step."""
    if not isinstance(rate, tuple):
        return rate
    name, *arguments = rate
    return SCHEDULES[name](step, *arguments)


def _number(step: Any) -> Any:
    return step.double() if isinstance(step, Tensor) else int(step)


def _part(done: Any, steps: int) -> Any:
    """How much of so many steps is done, 1 at most."""
    return (done / steps).clamp(max=1.0) if isinstance(done, Tensor) else min(1.0, done / steps)


def _choose(condition: Any, yes: Any, no: Any) -> Any:
    return torch.where(condition, yes, no) if isinstance(condition, Tensor) else yes if condition else no


def _cosine(angle: Any) -> Any:
    return angle.cos() if isinstance(angle, Tensor) else math.cos(angle)
