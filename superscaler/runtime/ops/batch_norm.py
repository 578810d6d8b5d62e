"""Batch normalisation in parts: sums over the batch, and what is done to each element by them.

Tensors are [n, c, *s], statistics [c], in float32 where the input is of half precision.
"""

import torch
from torch import Tensor


def channel_sums(x: Tensor) -> Tensor:
    """Per channel the sum over all other dims: [n, c, *s] -> [c]."""
    return x.sum(_others(x), dtype=_wide(x))


def channel_squares(x: Tensor, mean: Tensor) -> Tensor:
    """Per channel the sum of squared distances from `mean` [c]: [n, c, *s] -> [c]."""
    return (x.to(mean.dtype) - _spread(mean, x)).square_().sum(_others(x))


def batch_norm(
    x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """``(x - mean) * rstd * weight + bias``, per channel; [n, c, *s]."""
    scale = rstd if weight is None else rstd * weight
    y = (x.to(mean.dtype) - _spread(mean, x)).mul_(_spread(scale, x))
    return (y if bias is None else y.add_(_spread(bias, x))).to(x.dtype)


def batch_norm_sums(dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Per channel the sum of `dy`, and of `dy` times the normalised input: the gradients of bias and weight."""
    wide = dy.to(mean.dtype)
    normalised = (x.to(mean.dtype) - _spread(mean, x)).mul_(_spread(rstd, x))
    return wide.sum(_others(x)), normalised.mul_(wide).sum(_others(x))


def batch_norm_input_gradient(
    dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, sum_dy: Tensor,
    sum_dy_xhat: Tensor, *, count: float,
) -> Tensor:  # fmt: skip
    """Gradient of the input of a normalisation by the batch's own statistics over `count` elements per channel."""
    scale = rstd if weight is None else rstd * weight
    slope = rstd * sum_dy_xhat / count
    centred = (x.to(mean.dtype) - _spread(mean, x)).mul_(_spread(slope, x)).add_(_spread(sum_dy / count, x))
    return (dy.to(mean.dtype) - centred).mul_(_spread(scale, x)).to(x.dtype)


def _others(x: Tensor) -> list[int]:
    return [dim for dim in range(x.dim()) if dim != 1]


def _spread(per_channel: Tensor, x: Tensor) -> Tensor:
    return per_channel.view(1, -1, *[1] * (x.dim() - 2))


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
