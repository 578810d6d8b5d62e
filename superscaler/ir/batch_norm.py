"""Batch normalisation as sums over the batch: cut the batch, and the sums of few numbers are all that is exchanged.

With running statistics (evaluation) the batch does not matter, and every piece is normalised alone.
"""

from math import prod
from typing import Any

import torch
from torch import Tensor

_library = torch.library.Library("superscaler", "FRAGMENT")
_ops = torch.ops.superscaler


def _statistics_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _per_channel(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[1], dtype=_statistics_dtype(x))


for _schema, _shapes in (
    ("channel_sums(Tensor x) -> Tensor", _per_channel),
    ("channel_squares(Tensor x, Tensor mean) -> Tensor", lambda x, mean: _per_channel(x)),
    ("batch_norm(Tensor x, Tensor mean, Tensor rstd, Tensor? weight, Tensor? bias) -> Tensor",
     lambda x, *rest: torch.empty_like(x)),
    ("batch_norm_sums(Tensor dy, Tensor x, Tensor mean, Tensor rstd) -> (Tensor, Tensor)",
     lambda dy, x, mean, rstd: (_per_channel(x), _per_channel(x))),
    ("batch_norm_input_gradient(Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor? weight, Tensor sum_dy, "
     "Tensor sum_dy_xhat, *, float count) -> Tensor",
     lambda dy, x, *rest, **options: torch.empty_like(x)),
):  # fmt: skip
    _library.define(_schema)
    torch.library.register_fake(f"superscaler::{_schema.partition('(')[0]}", _shapes, lib=_library)


class _OfBatch(torch.autograd.Function):
    """Normalise by the statistics of the batch itself; also returns them: mean and variance [c]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        count = float(x.numel() // x.shape[1])
        mean = _ops.channel_sums(x) / count
        variance = _ops.channel_squares(x, mean) / count
        rstd = (variance + eps).rsqrt()
        ctx.save_for_backward(x, mean, rstd, weight)
        ctx.count = count
        ctx.mark_non_differentiable(mean, variance)
        return _ops.batch_norm(x, mean, rstd, weight, bias), mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        dy, (x, mean, rstd, weight) = gradients[0], ctx.saved_tensors
        sum_dy, sum_dy_xhat = _ops.batch_norm_sums(dy, x, mean, rstd)
        needs, dtype = ctx.needs_input_grad, x.dtype if weight is None else weight.dtype
        dx = _ops.batch_norm_input_gradient(
            dy, x, mean, rstd, weight, sum_dy, sum_dy_xhat, count=ctx.count
        )  # fmt: skip
        return dx, sum_dy_xhat.to(dtype) if needs[1] else None, sum_dy.to(dtype) if needs[2] else None, None


class _ByGivenStatistics(torch.autograd.Function):
    """Normalise by statistics that do not depend on the input."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, mean, rstd, weight)
        return _ops.batch_norm(x, mean, rstd, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        dy, (x, mean, rstd, weight) = gradients[0], ctx.saved_tensors
        needs, dtype = ctx.needs_input_grad, x.dtype if weight is None else weight.dtype
        dx = _ops.batch_norm(dy, torch.zeros_like(mean), rstd, weight, None)
        if not (needs[3] or needs[4]):
            return dx, None, None, None, None
        sum_dy, sum_dy_xhat = _ops.batch_norm_sums(dy, x, mean, rstd)
        return (
            dx,
            None,
            None,
            sum_dy_xhat.to(dtype) if needs[3] else None,
            sum_dy.to(dtype) if needs[4] else None,
        )


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """As ``F.batch_norm``; in training the running statistics are overwritten in place."""
    if not training:
        if running_mean is None or running_var is None:
            return NotImplemented
        return _ByGivenStatistics.apply(input, running_mean, (running_var + eps).rsqrt(), weight, bias)
    y, mean, variance = _OfBatch.apply(input, weight, bias, eps)
    if running_mean is not None and running_var is not None:
        count = prod(input.shape) // input.shape[1]
        with torch.no_grad():
            running_mean.mul_(1 - momentum).add_(mean.to(running_mean.dtype) * momentum)
            unbiased = variance * (count / max(count - 1, 1))
            running_var.mul_(1 - momentum).add_(unbiased.to(running_var.dtype) * momentum)
    return y
