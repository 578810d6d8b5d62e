"""Dropout whose mask depends on (key, step, element number in the whole tensor) and on nothing else.

So a piece of a tensor drops the same elements as the whole would, under every plan, and the backward pass
makes the mask again instead of keeping it.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from superscaler.runtime.random import element_numbers, hash_bits, row_chunks, seed_at


def dropout(
    x: Tensor,
    step: int | Tensor,
    *,
    p: float,
    key: str | int,
    starts: Sequence[int] | None = None,
    local: Sequence[int] | None = None,
    whole: Sequence[int] | None = None,
) -> Tensor:
    """``x * mask / (1 - p)``, where each element of the mask is 0 with probability `p`.

    Args:
        x: The local box of a tensor, any shape.
        step: Number of the training step, an integer or a scalar tensor; one on the device of `x` is not waited for.
        p: Probability that an element is dropped, in [0, 1].
        key: Names the dropout: two with different keys drop independently.
        starts: Index in the whole tensor of the local box's first element, per dim; None: all 0.
        local: Shape of the local box, with as many elements as `x`; None: the shape of `x`. It has more dims
            than `x` where a dim of the whole tensor is cut inside, as in ``[3, heads, 64]``.
        whole: Shape of the whole tensor, in as many dims as the box; None: `x` is whole.
    """
    if p == 0.0 or x.numel() == 0:
        return x.clone()
    if p == 1.0:
        return torch.zeros_like(x)
    box = tuple(x.shape) if local is None else tuple(local)
    whole = box if whole is None else tuple(whole)
    starts = (0,) * len(box) if starts is None else tuple(starts)
    assert len(whole) == len(starts) == len(box), (whole, starts, box)
    assert prod(box) == x.numel(), (box, x.shape)
    seed = seed_at(key, step)
    threshold = round(p * 2**64) - 2**63
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    flat_x, flat_out = x.reshape(-1), out.view(-1)
    intervals = tuple((start, start + size) for start, size in zip(starts, box, strict=True))
    for here in row_chunks(box, x.device):
        bits = hash_bits(seed, element_numbers(intervals, whole, here, x.device))
        torch.mul(flat_x[here], (bits >= threshold).to(x.dtype).div_(1.0 - p), out=flat_out[here])
    return out


def dropout_backward(
    dy: Tensor,
    step: int | Tensor,
    *,
    p: float,
    key: str | int,
    starts: Sequence[int] | None = None,
    local: Sequence[int] | None = None,
    whole: Sequence[int] | None = None,
) -> Tensor:
    """Gradient of the input, shaped like `dy`; the other arguments are those of `dropout`."""
    return dropout(dy, step, p=p, key=key, starts=starts, local=local, whole=whole)
