"""The global norm of all gradients, and the number gradients are multiplied by to keep it within a bound."""

from collections.abc import Sequence

import torch
from torch import Tensor

_RUN = 2**14
"""Elements whose squares are added one after another; longer sums in float32 lose digits."""


def squared_norm(g: Tensor) -> Tensor:
    """The sum of squares of a gradient, a number in float32, or in float64 for float64."""
    wide = torch.float64 if g.dtype == torch.float64 else torch.float32
    flat = g.reshape(-1)
    even = flat.numel() // _RUN * _RUN
    square = torch.linalg.vector_norm(flat[even:], dtype=wide).square()
    if even:
        square = (
            square + torch.linalg.vector_norm(flat[:even].view(-1, _RUN), dim=1, dtype=wide).square().sum()
        )
    return square


def squared_norms(gs: Sequence[Tensor]) -> list[Tensor]:
    """`squared_norm` of each."""
    return [squared_norm(g) for g in gs]


def total(numbers: Sequence[Tensor]) -> Tensor:
    """The sum of many numbers."""
    return torch.stack(list(numbers)).sum()


def gradient_norm(squares: Tensor) -> Tensor:
    """The norm, from the sum of all squares."""
    return squares.sqrt()


def clip_coefficient(norm: Tensor, max_norm: float) -> Tensor:
    """What gradients of this norm are multiplied by, as ``torch.nn.utils.clip_grad_norm_`` does."""
    return (max_norm / (norm + 1e-6)).clamp(max=1.0)
