"""Look up rows of a table, or of a contiguous piece of its rows; and the gradient of the table."""

import torch
import torch.nn.functional as F
from torch import Tensor


def embedding(weight: Tensor, index: Tensor, *, vocab_start: int | None = None) -> Tensor:
    """Rows [*b, d] of `weight` [v, d], which is a whole table, or rows ``[vocab_start, vocab_start + v)`` of one.

    An `index` [*b] outside a whole table is an error; outside a piece it gives zeros, so that the results for all
    pieces sum to the whole.
    """
    if vocab_start is None:
        return F.embedding(index, weight)
    local = index - vocab_start if vocab_start else index
    outside = _outside(local, weight.shape[0])
    rows = F.embedding(local.masked_fill(outside, 0), weight)
    return rows.masked_fill_(outside.unsqueeze(-1), 0.0)


def embedding_backward(dy: Tensor, index: Tensor, *, num_rows: int, vocab_start: int = 0) -> Tensor:
    """Gradient [num_rows, d] of the piece of the table, from `dy` [*b, d] and `index` [*b]."""
    local = index - vocab_start if vocab_start else index
    # The kernel skips one index, "padding": here it is one that stands for every row outside the piece.
    local = local.masked_fill(_outside(local, num_rows), num_rows)
    return torch.ops.aten.embedding_dense_backward(dy, local, num_rows, num_rows, False)


def _outside(local: Tensor, num_rows: int) -> Tensor:
    return (local < 0) | (local >= num_rows)
