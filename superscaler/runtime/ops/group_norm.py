"""Group normalisation and its gradient, whole or on a piece of the batch or of the groups."""

from collections.abc import Sequence

import torch
from torch import Tensor


def group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, *, group_size: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise over groups of channels.

    Args:
        x: [b, c, *s].
        weight, bias: [c], or None.
        group_size: Channels per group.
        eps: Added to the variance.

    Returns:
        The result [b, c, *s], and per group the mean and the reciprocal of the deviation [b, c / group_size].
    """
    batch, channels = x.shape[:2]
    space = x[0, 0].numel()
    return torch.native_group_norm(
        x.contiguous(), weight, bias, batch, channels, space, channels // group_size, eps
    )


def group_norm_backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    *,
    group_size: int,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias, those that are wanted; the others come out as None."""
    batch, channels = x.shape[:2]
    space, groups = x[0, 0].numel(), channels // group_size
    return torch.ops.aten.native_group_norm_backward(
        dy.contiguous(), x.contiguous(), mean.contiguous(), rstd.contiguous(), weight,
        batch, channels, space, groups, list(wanted),
    )  # fmt: skip
