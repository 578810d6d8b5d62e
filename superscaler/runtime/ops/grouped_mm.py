"""A matrix product per expert, on rows (or columns) that lie expert by expert."""

from itertools import pairwise

import torch
from torch import Tensor

_ALIGNMENT_BYTES = 16


def grouped_mm(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    """As ``F.grouped_mm`` for elements of any type, and for pieces of any size.

    Args:
        a: [rows, k], or [experts, m, k].
        b: [experts, k, n], or [k, columns]; where `a` has no experts it may be [rows, n].
        ends: The number of the row (or column) after each expert's last [experts].

    Returns:
        [rows, n] where `b` alone has experts, [m, columns] where `a` alone has; where neither has, and the rows of
        `b` are contracted with the columns of `a`, [experts, m, n].
    """
    if _kernel_takes(a) and _kernel_takes(b):
        return torch.nn.functional.grouped_mm(a, b, offs=ends)
    bounds = [0, *ends.tolist()]
    spans = [slice(start, stop) for start, stop in pairwise(bounds)]
    if a.dim() == b.dim() == 2:
        return torch.stack([a[:, span] @ b[span] for span in spans])
    if a.dim() == 2:
        out = a.new_zeros(a.shape[0], b.shape[2])
        for span, weight in zip(spans, b, strict=True):
            out[span] = a[span] @ weight
        return out
    out = a.new_zeros(a.shape[1], b.shape[1])
    for span, weight in zip(spans, a, strict=True):
        out[:, span] = weight @ b[:, span]
    return out


def _kernel_takes(x: Tensor) -> bool:
    aligned = _ALIGNMENT_BYTES // x.element_size()
    strides = [stride for stride in x.stride() if stride != 1]
    return x.is_cuda and x.dtype == torch.bfloat16 and all(stride % aligned == 0 for stride in strides)
