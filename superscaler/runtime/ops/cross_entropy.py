"""Cross entropy in two halves that also work on a piece of the vocabulary: log-sum-exp, and the picked logit.

The loss of a row is ``lse - picked``. Over pieces of the vocabulary `lse` combines by log-sum-exp and
`picked` by a sum, so the logits are never gathered.
"""

import torch
from torch import Tensor

_CHUNK_ELEMENTS = 262_144
"""Rows are worked on in chunks of about this many logits on a CPU, so that passes stay in cache."""


def cross_entropy(logits: Tensor, target: Tensor, *, vocab_start: int = 0) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of each row, and the logit at its target.

    Args:
        logits: [n, v], columns ``[vocab_start, vocab_start + v)`` of the whole.
        target: [n] of columns of the whole; one outside this piece (or negative, to ignore a row) picks 0.
        vocab_start: Number of this piece's first column.

    Returns:
        ``lse`` [n] and ``picked`` [n], in float32 at least.
    """
    columns, outside = _columns(target, logits.shape[1], vocab_start)
    dtype = _wide(logits)
    lse = torch.cat([_log_sum_exp(logits[rows].to(dtype)) for rows in _chunks(logits)])
    picked = logits.gather(1, columns.unsqueeze(1)).squeeze(1).to(dtype)
    return lse, picked.masked_fill_(outside, 0.0)


def cross_entropy_backward(
    dlse: Tensor, dpicked: Tensor, logits: Tensor, target: Tensor, lse: Tensor, *, vocab_start: int = 0
) -> Tensor:
    """Gradient [n, v] of the logits: ``dlse * exp(logits - lse)``, plus `dpicked` at the target.

    `dlse`, `dpicked` and `lse` are [n]; `lse` is that of whole rows, over all pieces.
    """
    columns, outside = _columns(target, logits.shape[1], vocab_start)
    dtype = _wide(logits)
    lse, dlse, columns = lse.to(dtype).unsqueeze(1), dlse.to(dtype).unsqueeze(1), columns.unsqueeze(1)
    # softmax's own backward kernel, the fastest exp there is, computes g - exp(y) * g.sum(): with -dlse put
    # in one column this is the wanted product everywhere else, and that column is then written exactly.
    at_target = (logits.gather(1, columns).to(dtype) - lse).exp_().mul_(dlse)
    at_target.add_(dpicked.to(dtype).masked_fill(outside, 0.0).unsqueeze(1))
    dlogits = torch.empty_like(logits, memory_format=torch.contiguous_format)
    for rows in _chunks(logits):
        chunk = logits[rows] - lse[rows]
        gradient = torch.zeros_like(chunk).scatter_(1, columns[rows], -dlse[rows])
        out = dlogits[rows] if dlogits.dtype == dtype else chunk
        torch.ops.aten._log_softmax_backward_data.out(gradient, chunk, 1, dtype, out=out)
        out.scatter_(1, columns[rows], at_target[rows])
        if out is chunk:
            dlogits[rows] = chunk
    return dlogits


def _log_sum_exp(logits: Tensor) -> Tensor:
    """``logits.logsumexp(1)``, by the faster kernel: the largest element less its own log-softmax."""
    largest = logits.amax(1)
    lse = largest - logits.log_softmax(1).amax(1)
    return lse.masked_fill_(largest == float("-inf"), float("-inf"))


def _wide(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _columns(target: Tensor, width: int, vocab_start: int) -> tuple[Tensor, Tensor]:
    """The target's column in this piece (0 where it has none), and where it has none."""
    local = target - vocab_start
    outside = (local < 0) | (local >= width)
    return local.masked_fill(outside, 0), outside


def _chunks(logits: Tensor) -> list[slice]:
    count, width = logits.shape
    step = max(1, _CHUNK_ELEMENTS // max(1, width)) if logits.device.type == "cpu" else max(1, count)
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]
