"""AdamW and SGD as torch.optim computes them: one tensor at a time, or fused over lists and in place.

`step` counts from 1: the first update a parameter ever gets is step 1.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def adamw(
    p: Tensor, g: Tensor, m: Tensor, v: Tensor, step: int | Tensor, *, lr: float, beta1: float, beta2: float,
    eps: float, weight_decay: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """One step of ``torch.optim.AdamW``: the new parameter, first and second moment, all of p's shape."""
    step = int(step)
    m = torch.lerp(m, g, 1 - beta1)
    v = (v * beta2).addcmul_(g, g, value=1 - beta2)
    correction1, correction2 = 1 - beta1**step, 1 - beta2**step
    denominator = v.sqrt().div_(correction2**0.5).add_(eps)
    p = (p * (1 - lr * weight_decay)).addcdiv_(m, denominator, value=-lr / correction1)
    return p, m, v


def adamw_(
    ps: Sequence[Tensor], gs: Sequence[Tensor], ms: Sequence[Tensor], vs: Sequence[Tensor],
    step: int | Tensor, *, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float,
) -> None:  # fmt: skip
    """One fused step of ``torch.optim.AdamW`` over lists; overwrites `ps` and the moments `ms`, `vs`."""
    with _columns(ps, gs, ms, vs) as groups:
        for dtype, (p, g, m, v) in groups.items():
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            steps = [torch.tensor(float(step), dtype=wide, device=p[0].device)] * len(p)
            torch.ops.aten._fused_adamw_(
                p, g, m, v, [], steps, lr=lr, beta1=beta1, beta2=beta2, weight_decay=weight_decay, eps=eps,
                amsgrad=False, maximize=False,
            )  # fmt: skip


def sgd(
    p: Tensor,
    g: Tensor,
    *buffer_and_step: int | Tensor,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> Tensor | tuple[Tensor, Tensor]:
    """One step of ``torch.optim.SGD``: ``sgd(p, g, step)``, or with momentum ``sgd(p, g, buffer, step)``.

    Returns the new parameter, and after it the new momentum buffer where one is given. The first step sets
    the buffer to the gradient, whatever it held.
    """
    *buffers, step = buffer_and_step
    if weight_decay:
        g = torch.add(g, p, alpha=weight_decay)
    if not buffers:
        return torch.add(p, g, alpha=-lr)
    buffer = g.clone() if int(step) == 1 else (buffers[0] * momentum) + g
    return torch.add(p, buffer, alpha=-lr), buffer


def sgd_(
    ps: Sequence[Tensor], gs: Sequence[Tensor], momentum_buffers: Sequence[Tensor] | None, step: int | Tensor,
    *, lr: float, momentum: float = 0.0, weight_decay: float = 0.0,
) -> None:  # fmt: skip
    """One fused step of ``torch.optim.SGD`` over lists, overwriting parameters and momentum buffers."""
    columns = (ps, gs) if momentum_buffers is None else (ps, gs, momentum_buffers)
    with _columns(*columns) as groups:
        for p, g, *buffers in groups.values():
            torch.ops.aten._fused_sgd_(
                p, g, buffers[0] if buffers else [], weight_decay=weight_decay, lr=lr,
                momentum=momentum if buffers else 0.0, dampening=0.0, nesterov=False, maximize=False,
                is_first_step=int(step) == 1,
            )  # fmt: skip


@contextmanager
def _columns(ps: Sequence[Tensor], gs: Sequence[Tensor], *states: Sequence[Tensor]) -> Iterator[dict]:
    """The columns, one group per dtype of parameter, as the fused kernels want them.

    The kernels walk memory, so all tensors of a row must lie alike: a gradient laid out otherwise is copied, and of
    a row whose parameter lies otherwise than its states (a piece cut along an inner dim) all are, and written back.
    """
    groups: dict[torch.dtype, list[list[Tensor]]] = defaultdict(lambda: [[] for _ in range(2 + len(states))])
    borrowed: list[tuple[Tensor, Tensor]] = []
    for p, g, *state in zip(ps, gs, *states, strict=True):
        row = [p, *state]
        if any(tensor.stride() != p.stride() for tensor in state) or not _is_dense(p):
            row = [tensor.contiguous() for tensor in row]
            borrowed += [
                (mine, work) for mine, work in zip((p, *state), row, strict=True) if mine is not work
            ]
        if g.dtype != p.dtype or g.stride() != row[0].stride():
            g = torch.empty_like(row[0]).copy_(g)
        for column, tensor in zip(groups[p.dtype], (row[0], g, *row[1:]), strict=True):
            column.append(tensor)
    yield groups
    for mine, work in borrowed:
        mine.copy_(work)


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill a stretch of memory without holes, in any order of dims."""
    return torch.ops.aten.is_non_overlapping_and_dense(tensor)
