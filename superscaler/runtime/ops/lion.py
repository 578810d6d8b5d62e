"""Lion (arXiv 2302.06675): the sign of an interpolated momentum, with decoupled weight decay."""

import torch
from torch import Tensor

from superscaler.runtime.ops.update import functional, in_place


def _lion(
    p: Tensor, g: Tensor, m: Tensor, step: int | Tensor, *, lr: float | Tensor, beta1: float, beta2: float,
    weight_decay: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One step of Lion: the new parameter and momentum."""
    direction = torch.lerp(m, g, 1 - beta1).sign()
    return p * (1 - lr * weight_decay) - direction * lr, torch.lerp(m, g, 1 - beta2)


lion = functional(_lion)
lion_ = in_place(_lion)
