"""Scaled dot-product attention and its gradient, by whichever fused kernel the device offers.

Every path returns the log-sum-exp of each row of scores beside the output: the backward pass needs it, and
it is what lets attention over pieces of the keys be put together again. `causal` is torch's: query i sees
keys 0..i, also where there are more keys than queries.
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
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Attend; equal to ``F.scaled_dot_product_attention``.

    Args:
        q: Queries [b, h, s, e].
        k: Keys [b, g, t, e]; h is a multiple of g, and query heads in a row share a head of keys and values.
        v: Values [b, g, t, f].
        mask: Added to the scores, or True where a query may look; broadcasts to [b, h, s, t].
        causal: Whether query i sees keys 0..i only.
        scale: What scores are multiplied by.

    Returns:
        The output [b, h, s, f] and the log-sum-exp of the scores [b, h, s] (float32; float64 for float64).
    """
    bias = _bias(mask, q)
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, shaped like them and laid out [b, s, h, e] in memory, heads inside.

    `out` [b, h, s, f] and `lse` [b, h, s] are what `attention` returned for the same arguments.
    """
    bias = _bias(mask, q)
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
) -> Tensor:
    """Gradient of a mask that is added to the scores (a learned bias), shaped like the mask."""
    wide_k, wide_v = _per_query_head(k, q), _per_query_head(v, q)
    weights, dweights, means = _weights(dout, q, wide_k, wide_v, out, lse, mask, causal, scale)
    return (weights * (dweights - means)).sum_to_size(mask.shape).to(mask.dtype)


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


def _scores(q: Tensor, k: Tensor, bias: Tensor | None, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Scores [b, h, s, t] in at least float32, and the log-sum-exp of their rows [b, h, s]."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    scores = (q.to(dtype) * scale) @ k.to(dtype).transpose(-2, -1)
    if bias is not None:
        scores += bias
    if causal:
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu_(1)
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
    causal: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """What the queries give the keys [b, h, s, t], its gradient, and the gradient's mean per query [b, h, s, 1]."""
    scores, _ = _scores(q, k, bias, causal, scale)
    weights, dtype = _softmax(scores, lse.to(scores.dtype)), scores.dtype
    dout = dout.to(dtype)
    dweights = dout @ v.to(dtype).transpose(-2, -1)
    return weights, dweights, (dout * out.to(dtype)).sum(-1, keepdim=True)


def _heads_inside(x: Tensor) -> Tensor:
    """The same [b, h, s, e], laid out [b, s, h, e], so that joining the heads afterwards moves nothing."""
    return x.transpose(-3, -2).contiguous().transpose(-3, -2)
