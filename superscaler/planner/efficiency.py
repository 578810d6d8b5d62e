"""Efficiency: which part of a device's peak speeds operators reach, by class and size, as data.

An operator of `work` (arithmetic, or bytes) reaches ``fraction * work / (work + half)`` of the peak, where `half` is
what the device does at its peak in `half_seconds`: the small ones reach little, large ones the `fraction`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from superscaler.errors import PlanError


class OperatorClass(StrEnum):
    """Operators that use a device in the same way."""

    MATMUL = "matmul"
    ATTENTION = "attention"
    CONVOLUTION = "convolution"
    POINTWISE = "pointwise"
    """Element by element or row by row: arithmetic, normalisation, softmax, losses, dropout, copies."""
    REDUCTION = "reduction"
    GATHER = "gather"
    """What reads or writes at places that data names: embeddings, gather, scatter, index."""
    UPDATE = "update"
    """The optimizer's."""

    @property
    def is_product(self) -> bool:
        """Whether matrix units do it, at the speed of the dtype; the rest is done in float32 at most."""
        return self in (OperatorClass.MATMUL, OperatorClass.ATTENTION, OperatorClass.CONVOLUTION)


@dataclass(frozen=True, slots=True)
class Curve:
    """What operators of one class reach."""

    arithmetic: float
    """Fraction of peak arithmetic that large ones reach."""
    memory: float
    """Fraction of peak memory bandwidth that large ones reach."""
    half_seconds: float
    """How long one is that reaches half of these, if it ran at them; the same for arithmetic and bytes."""

    def __post_init__(self) -> None:
        is_fraction = 0 < self.arithmetic <= 1 and 0 < self.memory <= 1
        if not is_fraction or not self.half_seconds >= 0:
            raise PlanError(
                f"{self} is no curve of efficiency",
                remedy="give fractions of the peak, more than 0 and at most 1, and seconds that are not negative",
            )


@dataclass(frozen=True, slots=True)
class Efficiency:
    """A curve per class of operators, and what it takes to start one."""

    launch_seconds: float
    """Added to every operator, however small."""
    curves: tuple[tuple[OperatorClass, Curve], ...]

    def __post_init__(self) -> None:
        if not self.launch_seconds >= 0:
            raise PlanError(
                f"operators start in {self.launch_seconds} seconds", remedy="give launch_seconds of 0 or more"
            )
        assert [name for name, _ in self.curves] == list(OperatorClass), "a curve per class, in their order"

    def curve(self, operator_class: OperatorClass) -> Curve:
        """The curve of one class."""
        return next(curve for name, curve in self.curves if name is operator_class)

    def with_curves(self, curves: Mapping[OperatorClass, Curve]) -> "Efficiency":
        """The same, with some curves replaced: by a measurement, or a fit."""
        return replace(self, curves=tuple((name, curves.get(name, old)) for name, old in self.curves))


def _efficiency(launch_seconds: float, *curves: tuple[float, float, float]) -> Efficiency:
    """Of (arithmetic, memory, half_seconds) per class, in the order of `OperatorClass`."""
    named = zip(OperatorClass, (Curve(*curve) for curve in curves), strict=True)
    return Efficiency(launch_seconds, tuple(named))


PEAK = _efficiency(0.0, *[(1.0, 1.0, 0.0)] * len(OperatorClass))
"""Every operator at the peak: a bound no device beats."""

# Matrix products: what cuBLAS reaches on large ones in half precision, about 100 of V100's 125 TFLOP/s and 700 of
# H100's 989, whose power limit binds. What A100, and H100 at 500 W, sustain in training is fitted to published
# throughput, the rows marked `fit` of benchmarks/published, by benchmarks.validate_simulator: it is less than cuBLAS
# reaches alone (255 TFLOP/s on A100). Attention: FlashAttention-2 (arXiv 2307.08691), forward and backward, about 0.6
# of A100's peak and 0.4 of H100's; less on V100, where it is made of products and softmax. Copies: some 0.88 of the
# data sheet's bandwidth. Products below about 10 microseconds do not fill a device (tile and wave quantisation,
# NVIDIA's Deep Learning Performance Guide), and a kernel takes some 4 microseconds to start.
V100 = _efficiency(
    4.5e-6,
    (0.80, 0.85, 1.0e-5), (0.40, 0.75, 1.5e-5), (0.60, 0.80, 2.0e-5),
    (0.80, 0.88, 3.0e-6), (0.80, 0.80, 5.0e-6), (0.50, 0.50, 5.0e-6), (0.80, 0.80, 5.0e-6),
)  # fmt: skip
A100 = _efficiency(
    4.0e-6,
    (0.706, 0.85, 1.2e-5), (0.58, 0.80, 1.5e-5), (0.65, 0.80, 2.0e-5),
    (0.80, 0.87, 3.0e-6), (0.80, 0.80, 5.0e-6), (0.50, 0.50, 5.0e-6), (0.80, 0.80, 5.0e-6),
)  # fmt: skip
H100 = _efficiency(
    3.5e-6,
    (0.71, 0.88, 1.2e-5), (0.42, 0.80, 1.5e-5), (0.55, 0.80, 2.0e-5),
    (0.80, 0.88, 3.0e-6), (0.80, 0.80, 5.0e-6), (0.50, 0.50, 5.0e-6), (0.80, 0.80, 5.0e-6),
)  # fmt: skip
H100_500W = H100.with_curves(
    {OperatorClass.MATMUL: Curve(0.487, 0.88, 1.2e-5), OperatorClass.ATTENTION: Curve(0.288, 0.80, 1.5e-5)}
)
GAMING = _efficiency(
    4.0e-6,
    (0.85, 0.88, 1.2e-5), (0.55, 0.80, 1.5e-5), (0.60, 0.80, 2.0e-5),
    (0.80, 0.90, 3.0e-6), (0.80, 0.80, 5.0e-6), (0.50, 0.50, 5.0e-6), (0.80, 0.80, 5.0e-6),
)  # fmt: skip
"""Of cards whose matrix units accumulate at full speed or not at all: the peaks given for them are what counts."""
PROCESSOR = _efficiency(
    5.0e-6,
    (0.80, 0.80, 1.0e-5), (0.40, 0.60, 3.0e-5), (0.50, 0.60, 3.0e-5),
    (0.50, 0.70, 1.0e-5), (0.30, 0.60, 1.0e-5), (0.30, 0.30, 1.0e-5), (0.50, 0.60, 1.0e-5),
)  # fmt: skip
"""Of a laptop's processor: guesses, which `superscaler profile` replaces."""
