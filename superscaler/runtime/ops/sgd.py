"""SGD as torch.optim computes it."""

from typing import Any

import torch
from torch import Tensor

from superscaler.runtime.ops.update import functional, fused, is_first


@functional
def sgd(
    p: Tensor, g: Tensor, *buffer_and_step: Any, lr: float, momentum: float = 0.0, weight_decay: float = 0.0
) -> tuple[Tensor, ...]:
    """One step of ``torch.optim.SGD``: ``sgd(p, g, step)``, or with momentum ``sgd(p, g, buffer, step)``.

    Returns the new parameter, and after it the new momentum buffer where one is given. The first step sets
    the buffer to the gradient, whatever it held.
    """
    *buffers, step = buffer_and_step
    if weight_decay:
        g = torch.add(g, p, alpha=weight_decay)
    if not buffers:
        return (torch.add(p, g, alpha=-lr),)
    buffer = g.clone() if step == 1 else (buffers[0] * momentum) + g
    return torch.add(p, buffer, alpha=-lr), buffer


@fused
def sgd_(
    p: list, g: list, *buffers_and_step: Any, lr: float | Tensor, momentum: float = 0.0, weight_decay: float = 0.0,
    skip: Tensor | None = None,
) -> None:  # fmt: skip
    """One step of ``torch.optim.SGD`` over lists, overwriting parameters and momentum buffers."""
    *buffers, step = buffers_and_step
    torch.ops.aten._fused_sgd_(
        p, g, buffers[0] if buffers else [], weight_decay=weight_decay, lr=lr,
        momentum=momentum if buffers else 0.0, dampening=0.0, nesterov=False, maximize=False,
        is_first_step=is_first(step), found_inf=skip,
    )  # fmt: skip
