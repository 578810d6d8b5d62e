"""Scaled dot-product attention and its gradient, by whichever fused kernel the device offers.

Every path returns the log-sum-exp of each row of scores beside the output: the backward pass needs it, and
it is what lets attention over pieces of the keys be put together again. `causal` is torch's: query i sees
keys 0..i, also where there are more keys than queries.

A piece of the queries of a causal attention is told where it starts. The keys before it are seen whole, its own
causally, those behind it not at all; so the kernels are those of whole sequences, and no mask is made.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten

_HALF = (torch.float16, torch.bfloat16)
_LOG_SUM_EXP_ALIGNMENT = 32
"""The memory-efficient CUDA kernel wants whole blocks of this many rows of log-sum-exp."""
_BIAS_ALIGNMENT = 16
"""... and rows of the mask that start at multiples of this many elements."""


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool,
    scale: float,
    query_start: int = 0,
) -> tuple[Tensor, Tensor]:
    """Attend; equal to ``F.scaled_dot_product_attention``.

    Args:
        q: Queries [b, h, s, e].
        k: Keys [b, g, t, e]; h is a multiple of g, and query heads in a row share a head of keys and values.
        v: Values [b, g, t, f].
        mask: Added to the scores, or True where a query may look; broadcasts to [b, h, s, t].
        causal: Whether query i sees keys 0..i only.
        scale: What scores are multiplied by.
        query_start: The number of the first query, where `q` is a piece of the queries.

    Returns:
        The output [b, h, s, f] and the log-sum-exp of the scores [b, h, s] (float32; float64 for float64).
    """
    if not causal or _is_diagonal(query_start, q, k):
        return _attend(q, k, v, _bias(mask, q), causal, scale)
    parts = [
        _attend(q, k[..., first:last, :], v[..., first:last, :], bias, own, scale)
        for first, last, own, bias in _parts(query_start, q, k, _bias(mask, q))
    ]
    return parts[0] if len(parts) == 1 else _together(*parts)


def attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool,
    scale: float,
    query_start: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, shaped like them and laid out [b, s, h, e] in memory, heads inside.

    `out` [b, h, s, f] and `lse` [b, h, s] are what `attention` returned for the same arguments.
    """
    if not causal or _is_diagonal(query_start, q, k):
        return _attend_backward(dout, q, k, v, out, lse, _bias(mask, q), causal, scale)
    dq, dk, dv = (_zeros(x) for x in (q, k, v))
    for first, last, own, bias in _parts(query_start, q, k, _bias(mask, q)):
        seen = k[..., first:last, :], v[..., first:last, :]
        dq_part, dk_part, dv_part = _attend_backward(dout, q, *seen, out, lse, bias, own, scale)
        dq += dq_part
        dk[..., first:last, :] = dk_part
        dv[..., first:last, :] = dv_part
    return dq, dk, dv


def attention_mask_gradient(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    mask: Tensor,
    *,
    causal: bool,
    scale: float,
    query_start: int = 0,
) -> Tensor:
    """Gradient of a mask that is added to the scores (a learned bias), shaped like the mask."""
    wide_k, wide_v = _per_query_head(k, q), _per_query_head(v, q)
    weights, dweights, means = _weights(dout, q, wide_k, wide_v, out, lse, mask, causal, scale, query_start)
    return (weights * (dweights - means)).sum_to_size(mask.shape).to(mask.dtype)


def _is_diagonal(start: int, q: Tensor, k: Tensor) -> bool:
    """Whether keys and queries begin together, and no key lies behind all queries: what kernels call causal."""
    return start == 0 and k.shape[2] <= q.shape[2]


Part = tuple[int, int, bool, Tensor | None]
"""The first and last key, whether they are seen causally, and what is added to their scores."""


def _parts(start: int, q: Tensor, k: Tensor, bias: Tensor | None) -> list[Part]:
    """The keys before a piece of causal queries, and those of the piece.

    With a bias both at once: it may hide all keys before a query, and kernels differ in what they make of that.
    """
    rows, end = q.shape[2], min(start + q.shape[2], k.shape[2])
    if bias is not None:
        ahead = torch.ones(rows, end, dtype=torch.bool, device=q.device).triu_(1 + start)
        return [(0, end, False, bias[..., :end].masked_fill(ahead, float("-inf")))]
    middle = min(start, end)
    bounds = ((0, middle, False), (middle, end, True))
    return [(first, last, own, None) for first, last, own in bounds if first < last]


def _together(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Attention over two sets of keys, from the attention over each: outputs weighed by their sums of exponents."""
    (out, lse), (other_out, other_lse) = one, other
    together = torch.logaddexp(lse, other_lse)
    weight = _softmax(lse.clone().unsqueeze(-1), together)
    other_weight = _softmax(other_lse.clone().unsqueeze(-1), together)
    return (weight * out + other_weight * other_out).to(out.dtype), together


def _zeros(x: Tensor) -> Tensor:
    """Zeros like `x` [b, h, s, e], laid out [b, s, h, e]."""
    return torch.zeros_like(x.transpose(-3, -2), memory_format=torch.contiguous_format).transpose(-3, -2)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """`attention` to keys that begin with the first query's."""
    kernel = _kernel(q, k, v, bias, causal)
    if kernel == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, attn_mask=bias, scale=scale
        )
    if kernel == "flash":
        return aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, scale=scale)[:2]
    k, v = _per_query_head(k, q), _per_query_head(v, q)
    if kernel == "efficient":
        bias = _expand_bias(bias, q, k)
        out, lse = aten._scaled_dot_product_efficient_attention(
            q, k, v, bias, True, 0.0, causal, scale=scale
        )[:2]
        return out, lse[..., : q.shape[2]]
    scores, lse = _scores(q, k, bias, causal, scale)
    return _heads_inside((_softmax(scores, lse) @ v.to(scores.dtype)).to(v.dtype)), lse


def _attend_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bias: Tensor | None,
    causal: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The part of `attention_backward` that goes through these keys; `out` and `lse` are those of all keys."""
    kernel = _kernel(q, k, v, bias, causal)
    if kernel == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(
            dout, q, k, v, out, lse, 0.0, causal, attn_mask=bias, scale=scale
        )
    if kernel == "flash":
        unused = torch.empty((), dtype=torch.int64, device=q.device)
        rows, columns = q.shape[2], k.shape[2]
        return aten._scaled_dot_product_flash_attention_backward(
            dout, q, k, v, out, lse, None, None, rows, columns, 0.0, causal, unused, unused, scale=scale
        )
    wide_k, wide_v = _per_query_head(k, q), _per_query_head(v, q)
    if kernel == "efficient":
        unused = torch.empty((), dtype=torch.int64, device=q.device)
        bias, lse = _expand_bias(bias, q, k), _pad_log_sum_exp(lse)
        wanted = [True, True, True, False]
        dq, dk, dv, _ = aten._scaled_dot_product_efficient_attention_backward(
            dout, q, wide_k, wide_v, bias, out, lse, unused, unused, 0.0, wanted, causal, scale=scale
        )
    else:
        dq, dk, dv = _math_backward(dout, q, wide_k, wide_v, out, lse, bias, causal, scale)
    return dq, _per_key_head(dk, k), _per_key_head(dv, v)


def _per_query_head(x: Tensor, q: Tensor) -> Tensor:
    """Keys or values [b, g, t, e] as [b, h, t, e]: a head for each head of queries."""
    return x if x.shape[1] == q.shape[1] else x.repeat_interleave(q.shape[1] // x.shape[1], 1)


def _per_key_head(dx: Tensor, x: Tensor) -> Tensor:
    """The gradient [b, h, t, e] of repeated keys or values as that of `x` [b, g, t, e]."""
    if dx.shape[1] == x.shape[1]:
        return dx
    return _heads_inside(dx.unflatten(1, (x.shape[1], -1)).sum(2))


def _kernel(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool) -> str:
    """Which of cpu, flash, efficient and math takes these tensors."""
    fused = q.dim() == 4 and min(q.numel(), k.numel(), v.numel()) > 0
    if not fused or any(x.stride(-1) != 1 for x in (q, k, v)):
        return "math"
    if q.device.type == "cpu":
        return "cpu" if q.shape[-1] == v.shape[-1] and (bias is None or bias.dim() in (2, 4)) else "math"
    if q.device.type != "cuda" or q.dtype == torch.float64:
        return "math"
    if q.dtype in _HALF and bias is None and _flash_takes(q, k, v, causal):
        return "flash"
    aligned = 16 // q.element_size()
    return "efficient" if q.shape[-1] % aligned == 0 and v.shape[-1] % aligned == 0 else "math"


def _flash_takes(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> bool:
    width = q.shape[-1]
    is_sized = width == v.shape[-1] and width <= 256 and width % 8 == 0
    # where lengths differ, its causal mask ends at the last key, not at the diagonal
    is_masked_alike = not causal or q.shape[2] == k.shape[2]
    return is_sized and is_masked_alike and torch.cuda.get_device_capability(q.device) >= (8, 0)


def _bias(mask: Tensor | None, q: Tensor) -> Tensor | None:
    """The mask as something to add to the scores."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, float("-inf"))


def _expand_bias(bias: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    if bias is None:
        return None
    columns = k.shape[2]
    if bias.shape[-1] != columns:
        bias = bias.expand(*bias.shape[:-1], columns)
    bias = F.pad(bias, (0, -columns % _BIAS_ALIGNMENT))[..., :columns]
    return bias.expand(q.shape[0], q.shape[1], q.shape[2], columns)


def _pad_log_sum_exp(lse: Tensor) -> Tensor:
    return F.pad(lse, (0, -lse.shape[-1] % _LOG_SUM_EXP_ALIGNMENT), value=float("inf"))


def _scores(
    q: Tensor, k: Tensor, bias: Tensor | None, causal: bool, scale: float, start: int = 0
) -> tuple[Tensor, Tensor]:
    """Scores [b, h, s, t] in at least float32, and the log-sum-exp of their rows [b, h, s]."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    scores = (q.to(dtype) * scale) @ k.to(dtype).transpose(-2, -1)
    if bias is not None:
        scores += bias
    if causal:
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu_(1 + start)
        scores.masked_fill_(ahead, float("-inf"))
    return scores, scores.logsumexp(-1)


def _softmax(scores: Tensor, lse: Tensor) -> Tensor:
    """``exp(scores - lse)`` in place; a row that may look nowhere gives zeros."""
    finite = lse.masked_fill(lse == float("-inf"), 0.0)
    return scores.sub_(finite.unsqueeze(-1)).exp_()


def _math_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bias: Tensor | None,
    causal: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    weights, dweights, means = _weights(dout, q, k, v, out, lse, bias, causal, scale)
    dtype = weights.dtype
    dv = weights.transpose(-2, -1) @ dout.to(dtype)
    dscores = weights * (dweights - means) * scale
    dq, dk = dscores @ k.to(dtype), dscores.transpose(-2, -1) @ q.to(dtype)
    return _heads_inside(dq.to(q.dtype)), _heads_inside(dk.to(k.dtype)), _heads_inside(dv.to(v.dtype))


def _weights(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bias: Tensor | None,
    causal: bool, scale: float, start: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """What the queries give the keys [b, h, s, t], its gradient, and the gradient's mean per query [b, h, s, 1]."""
    scores, _ = _scores(q, k, bias, causal, scale, start)
    weights, dtype = _softmax(scores, lse.to(scores.dtype)), scores.dtype
    dout = dout.to(dtype)
    dweights = dout @ v.to(dtype).transpose(-2, -1)
    return weights, dweights, (dout * out.to(dtype)).sum(-1, keepdim=True)


def _heads_inside(x: Tensor) -> Tensor:
    """The same [b, h, s, e], laid out [b, s, h, e], so that joining the heads afterwards moves nothing."""
    return x.transpose(-3, -2).contiguous().transpose(-3, -2)
