"""Float8 in eager PyTorch: linear layers of a model as it is, with an autograd function of their own."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from superscaler.ir.float8 import why_wide
from superscaler.ir.kinds import resolve


class Float8Linears(TorchFunctionMode):
    """While it is on, calls of ``F.linear`` multiply in float8 where a traced graph's would."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, or what stands for it."""
        kwargs = kwargs or {}
        return _linear(*args, **kwargs) if func is F.linear else func(*args, **kwargs)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As ``F.linear``."""
    x, w, b = input, weight, bias
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, w, b = x.to(dtype), w.to(dtype), None if b is None else b.to(dtype)
    dtypes = [str(value.dtype).removeprefix("torch.") for value in (x, w)]
    if x.dim() == 1 or why_wide(dtypes, *w.shape):
        return F.linear(x, w, b)
    # under autocast torch adds the bias of a float8 product in another way
    with torch.autocast("cpu", enabled=False):
        return _Float8Linear.apply(x, w, b)  # pyright: ignore[reportReturnType]


class _Float8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return resolve("ops.linear_float8")(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (dy,), (x, weight) = gradients, ctx.saved_tensors
        needs = ctx.needs_input_grad
        return (
            resolve("ops.linear_float8_input_gradient")(dy, weight) if needs[0] else None,
            resolve("ops.linear_float8_weight_gradient")(dy, x) if needs[1] else None,
            resolve("ops.linear_bias_gradient")(dy) if needs[2] else None,
        )
