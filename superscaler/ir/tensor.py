"""Tensor: a logical tensor of the graph. Region: the part of one that a piece of an operator touches."""

from dataclasses import dataclass
from enum import StrEnum
from math import prod

DTYPE_BYTES = {
    "float64": 8, "float32": 4, "bfloat16": 2, "float16": 2,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1, "float8_e4m3fn": 1,
    "complex64": 8, "complex128": 16,
}  # fmt: skip


class Role(StrEnum):
    """What a tensor is for."""

    INPUT = "input"
    """One batch of the user's data, fed anew every step."""
    PARAMETER = "parameter"
    BUFFER = "buffer"
    STATE = "state"
    """Optimizer state of one parameter."""
    GRADIENT = "gradient"
    ACTIVATION = "activation"
    STEP = "step"
    """The number of the training step, a scalar every rank knows."""

    @property
    def is_stored(self) -> bool:
        """Whether the tensor outlives a step."""
        return self in (Role.PARAMETER, Role.BUFFER, Role.STATE)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A logical tensor: whole, placed nowhere."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """As in ``torch``, without the prefix: ``float32``."""
    role: Role

    @property
    def num_elements(self) -> int:
        """Elements of the whole tensor."""
        return prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole tensor."""
        return self.num_elements * DTYPE_BYTES[self.dtype]

    def __str__(self) -> str:
        """Print as ``name: float32[8, 128]``."""
        return f"{self.name}: {self.dtype}{list(self.shape)}"


@dataclass(frozen=True, slots=True)
class Region:
    """A box of a tensor, or one summand of a box.

    The box is given over the tensor's *fine* dims (`superscaler.ir.axes`): a dim that is viewed as
    ``(3, heads, 64)`` elsewhere counts as three, so that a cut of ``heads`` is still one interval.
    """

    intervals: tuple[tuple[int, int], ...]
    """Half-open ``[start, stop)`` per fine dim."""
    share: tuple[int, int] = (0, 1)
    """``(i, n)``: summand i of n; the values are whole when n is 1."""

    def __post_init__(self) -> None:
        assert all(0 <= start <= stop for start, stop in self.intervals), self.intervals
        assert 0 <= self.share[0] < self.share[1], self.share

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements per fine dim."""
        return tuple(stop - start for start, stop in self.intervals)

    @property
    def num_elements(self) -> int:
        """Elements of the box."""
        return prod(self.shape)

    def intersect(self, other: "Region") -> "Region | None":
        """The common box, with this region's share; None where there is none."""
        intervals = tuple(
            (max(a, c), min(b, d)) for (a, b), (c, d) in zip(self.intervals, other.intervals, strict=True)
        )
        if any(start >= stop for start, stop in intervals):
            return None
        return Region(intervals, self.share)

    def within(self, outer: "Region") -> tuple[slice, ...]:
        """Where this box lies in `outer`, as slices of outer's own elements."""
        return tuple(
            slice(a - c, b - c) for (a, b), (c, _) in zip(self.intervals, outer.intervals, strict=True)
        )

    def __str__(self) -> str:
        """Print as ``[0:4, 0:128]`` with ``+1/2`` behind a summand."""
        box = ", ".join(f"{start}:{stop}" for start, stop in self.intervals)
        return f"[{box}]" + (f" +{self.share[0]}/{self.share[1]}" if self.share[1] > 1 else "")
