"""Dynamic loss scaling: the numbers every rank computes alike, as ``torch.amp.GradScaler`` computes them."""

from collections.abc import Sequence

import torch
from torch import Tensor


def loss_scale(scale: Tensor, step: int | Tensor, *, init: float) -> Tensor:
    """What the loss is multiplied by in this step; before the first there is no scale but `init`."""
    if isinstance(step, Tensor):
        return torch.where(step == 1, torch.full_like(scale, init), scale)
    return torch.full_like(scale, init) if step == 1 else scale.clone()


def count_nonfinite(g: Tensor) -> Tensor:
    """How many elements of a gradient are infinite or no numbers, as a float."""
    return g.isfinite().logical_not_().sum().to(torch.float64 if g.dtype == torch.float64 else torch.float32)


def counts_nonfinite(gs: Sequence[Tensor]) -> list[Tensor]:
    """`count_nonfinite` of each."""
    return [count_nonfinite(g) for g in gs]


def overflows(count: Tensor) -> Tensor:
    """Whether the step is skipped, given the number of elements that are not finite."""
    return count != 0


def unscaled_norm(squares: Tensor, scale: Tensor) -> Tensor:
    """The norm of gradients, from the sum of squares of scaled ones."""
    return squares.sqrt() / scale


def unscale(coefficient: Tensor, scale: Tensor) -> Tensor:
    """What scaled gradients are multiplied by, where those of the loss itself are by `coefficient`."""
    return coefficient / scale


def inverse_scale(scale: Tensor) -> Tensor:
    """What scaled gradients are multiplied by."""
    return scale.reciprocal()


def count_updates(updates: Tensor, overflow: Tensor) -> Tensor:
    """The number of updates made, with that of this step unless it is skipped."""
    return updates + overflow.logical_not()


def next_loss_scale(
    scale: Tensor, good_steps: Tensor, overflow: Tensor, *, growth: float, backoff: float, interval: int
) -> tuple[Tensor, Tensor]:
    """The scale of the next step, and the number of steps in a row without overflow."""
    good_steps = torch.where(overflow, 0, good_steps + 1)
    grows = good_steps == interval
    grown = torch.where(grows & (scale * growth).isfinite(), scale * growth, scale)
    return torch.where(overflow, scale * backoff, grown), torch.where(grows, 0, good_steps)
