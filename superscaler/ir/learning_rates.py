"""Learning rates as data: a number, or a schedule that the update evaluates from the number of the step.

The first step is step 1 and gets ``peak / warmup``; step ``warmup`` gets ``peak``, step ``total`` the floor.
"""

from dataclasses import astuple, dataclass, fields
from typing import Any, ClassVar

from superscaler.errors import TraceError


@dataclass(frozen=True, slots=True)
class Constant:
    """Up to `peak` over `warmup` steps, and there from then on."""

    peak: float
    warmup: int = 0

    name: ClassVar[str] = "constant"


@dataclass(frozen=True, slots=True)
class Linear:
    """Up to `peak` over `warmup` steps, then down a line to `floor`, reached at step `total`."""

    peak: float
    warmup: int
    total: int
    floor: float = 0.0

    name: ClassVar[str] = "linear"

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, slots=True)
class Cosine:
    """Up to `peak` over `warmup` steps, then down half a cosine to `floor`, reached at step `total`."""

    peak: float
    warmup: int
    total: int
    floor: float = 0.0

    name: ClassVar[str] = "cosine"

    def __post_init__(self) -> None:
        _check(self)


Schedule = Constant | Linear | Cosine
LearningRate = float | Schedule
SCHEDULES: dict[str, type[Schedule]] = {item.name: item for item in (Constant, Linear, Cosine)}


def _check(schedule: Linear | Cosine) -> None:
    if not 0 <= schedule.warmup < schedule.total:
        raise TraceError(
            f"{schedule} warms up for {schedule.warmup} of {schedule.total} steps",
            remedy="give a total above the warmup, both in steps",
        )


def rate_argument(value: Any) -> Any:
    """An option as an operator's argument: a schedule as the tuple of its name and numbers."""
    return (value.name, *astuple(value)) if isinstance(value, Schedule) else value


def rate_call(argument: tuple[Any, ...]) -> str:
    """The call by which generated source evaluates a schedule: ``ops.cosine_rate(step, peak=0.0003, ...)``."""
    name, *numbers = argument
    named = zip(fields(SCHEDULES[name]), numbers, strict=True)
    return f"ops.{name}_rate(step, {', '.join(f'{field.name}={number!r}' for field, number in named)})"
