"""Optimizers as data: the update of one parameter is one operator of the graph.

A new optimizer is one frozen dataclass here, listed in `OPTIMIZERS`, and one file in `superscaler.runtime.ops` with
its rule: everything else (clipping, schedules, skipped steps, master weights, sharding) is the same for all.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Self

from superscaler.errors import TraceError
from superscaler.ir.learning_rates import LearningRate, rate_argument

MASTER = "master"
"""The state that holds the parameter in float32, with `Optimizer.master_weights`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """What all optimizers have in common."""

    clip_norm: float | None = None
    """The largest norm of all gradients together, as ``torch.nn.utils.clip_grad_norm_``; None: any."""
    master_weights: bool = False
    """Whether parameters of less than 32 bits are updated in float32 copies, kept as states."""
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Pattern of parameters' names -> options that differ there: ``{"*.bias": {"weight_decay": 0.0}}``; of
    several patterns that match a name, later ones win."""

    kind: ClassVar[str] = ""
    states: ClassVar[tuple[str, ...]] = ()
    """What is kept per parameter, each shaped like it."""

    @property
    def kept(self) -> tuple[str, ...]:
        """The states these options need."""
        return self.states

    @property
    def options(self) -> tuple[tuple[str, Any], ...]:
        """Keyword arguments of the update operator."""
        return tuple((name, rate_argument(getattr(self, name))) for name in _own_fields(self))

    def for_parameter(self, name: str) -> Self:
        """The optimizer with the options that hold for one parameter."""
        chosen: dict[str, Any] = {}
        for pattern, options in self.overrides.items():
            if fnmatchcase(name, pattern):
                chosen.update(options)
        return replace(self, **chosen)

    def check_overrides(self, names: list[str]) -> None:
        """Every override means parameters there are, and options there are.

        Raises:
            TraceError: One does not; the message names it.
        """
        for pattern, options in self.overrides.items():
            if not any(fnmatchcase(name, pattern) for name in names):
                raise TraceError(
                    f"the override {pattern!r} of {type(self).__name__} matches none of the trained parameters",
                    remedy="their names are " + ", ".join(names[:8]) + (", ..." if len(names) > 8 else ""),
                )
            unknown = [option for option in options if option not in _own_fields(self)]
            if unknown:
                raise TraceError(
                    f"the override {pattern!r} sets {unknown[0]!r}, which {type(self).__name__} has not per parameter",
                    remedy=f"use {', '.join(_own_fields(self))}",
                )


def _own_fields(optimizer: Optimizer) -> list[str]:
    shared = {item.name for item in fields(Optimizer)}
    return [item.name for item in fields(optimizer) if item.name not in shared]


@dataclass(frozen=True, slots=True)
class AdamW(Optimizer):
    """``torch.optim.AdamW``: Adam with decoupled weight decay."""

    lr: LearningRate = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 1e-2

    kind: ClassVar[str] = "adamw"
    states: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Adam(Optimizer):
    """``torch.optim.Adam``: weight decay is added to the gradient."""

    lr: LearningRate = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    kind: ClassVar[str] = "adam"
    states: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class SGD(Optimizer):
    """``torch.optim.SGD`` with optional momentum."""

    lr: LearningRate = 1e-2
    momentum: float = 0.0
    weight_decay: float = 0.0

    kind: ClassVar[str] = "sgd"
    states: ClassVar[tuple[str, ...]] = ("momentum_buffer",)

    @property
    def kept(self) -> tuple[str, ...]:
        """The momentum buffer, if there is momentum."""
        return self.states if self.momentum else ()


@dataclass(frozen=True, slots=True)
class Lion(Optimizer):
    """Lion (arXiv 2302.06675): the sign of an interpolated momentum."""

    lr: LearningRate = 1e-4
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0

    kind: ClassVar[str] = "lion"
    states: ClassVar[tuple[str, ...]] = ("exp_avg",)


OPTIMIZERS: dict[str, type[Optimizer]] = {item.kind: item for item in (AdamW, Adam, SGD, Lion)}
"""Kind of the update operator -> its optimizer."""
