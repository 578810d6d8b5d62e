"""Optimizers as data: the update of one parameter is one operator of the graph.

A new optimizer is one frozen dataclass here, one row in `superscaler.ir.kinds` and one function in
`superscaler.runtime.ops`.
"""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class AdamW:
    """``torch.optim.AdamW``: Adam with decoupled weight decay."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 1e-2

    kind: ClassVar[str] = "adamw"

    @property
    def states(self) -> tuple[str, ...]:
        """What is kept per parameter, each shaped like it."""
        return ("exp_avg", "exp_avg_sq")

    @property
    def options(self) -> tuple[tuple[str, Any], ...]:
        """Keyword arguments of the update operator."""
        return tuple(asdict(self).items())


@dataclass(frozen=True, slots=True)
class SGD:
    """``torch.optim.SGD`` with optional momentum."""

    lr: float = 1e-2
    momentum: float = 0.0
    weight_decay: float = 0.0

    kind: ClassVar[str] = "sgd"

    @property
    def states(self) -> tuple[str, ...]:
        """What is kept per parameter, each shaped like it."""
        return ("momentum_buffer",) if self.momentum else ()

    @property
    def options(self) -> tuple[tuple[str, Any], ...]:
        """Keyword arguments of the update operator."""
        return tuple(asdict(self).items())


Optimizer = AdamW | SGD
