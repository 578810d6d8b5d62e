"""Adam and AdamW as torch.optim computes them."""

from typing import Any

import torch
from torch import Tensor

from superscaler.runtime.ops.update import functional, fused


@functional
def adamw(
    p: Tensor, g: Tensor, m: Tensor, v: Tensor, step: int, *, lr: float, beta1: float, beta2: float, eps: float,
    weight_decay: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """One step of ``torch.optim.AdamW``: the new parameter, first and second moment, all of p's shape."""
    return _adam(p * (1 - lr * weight_decay), g, m, v, step, lr, beta1, beta2, eps)


@functional
def adam(
    p: Tensor, g: Tensor, m: Tensor, v: Tensor, step: int, *, lr: float, beta1: float, beta2: float, eps: float,
    weight_decay: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """One step of ``torch.optim.Adam``, whose weight decay is a part of the gradient."""
    return _adam(p, torch.add(g, p, alpha=weight_decay), m, v, step, lr, beta1, beta2, eps)


def _adam(
    p: Tensor, g: Tensor, m: Tensor, v: Tensor, step: int, lr: float, beta1: float, beta2: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    m = torch.lerp(m, g, 1 - beta1)
    v = (v * beta2).addcmul_(g, g, value=1 - beta2)
    correction1, correction2 = 1 - beta1**step, 1 - beta2**step
    denominator = v.sqrt().div_(correction2**0.5).add_(eps)
    return p.addcdiv(m, denominator, value=-lr / correction1), m, v


@fused
def adamw_(p: list, g: list, m: list, v: list, step: int | Tensor, **options: Any) -> None:
    """One step of ``torch.optim.AdamW`` over lists; overwrites parameters and moments."""
    _kernel(torch.ops.aten._fused_adamw_, p, g, m, v, step, **options)


@fused
def adam_(p: list, g: list, m: list, v: list, step: int | Tensor, **options: Any) -> None:
    """One step of ``torch.optim.Adam`` over lists; overwrites parameters and moments."""
    _kernel(torch.ops.aten._fused_adam_, p, g, m, v, step, **options)


def _kernel(
    kernel: Any, p: list, g: list, m: list, v: list, step: int | Tensor, *, skip: Tensor | None, **options: Any,
) -> None:  # fmt: skip
    # in float32 whatever the parameters are: kernels of GPUs read nothing else
    steps = [torch.as_tensor(step, dtype=torch.float32, device=p[0].device)] * len(p)
    kernel(p, g, m, v, [], steps, amsgrad=False, maximize=False, found_inf=skip, **options)
