"""Whole operators: attention, linear, cross entropy, dropout as single nodes, each with its own backward.

They exist for tracing alone. Each is declared to torch with its shapes and its derivative, so that a trace
shows one device-neutral operator where ATen would show the kernel of one device; what runs is
`superscaler.runtime.ops`.
`capture` maps the user's calls of ``torch.nn.functional`` onto them.
"""

from collections.abc import Callable
from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from superscaler.ir.autocast import WholeAutocast
from superscaler.ir.batch_norm import batch_norm
from superscaler.ir.grouped_mm import grouped_mm

_library = torch.library.Library("superscaler", "DEF")
_ops = torch.ops.superscaler


def _define(schema: str, shapes: Callable[..., Any]) -> None:
    name = schema.split("(", 1)[0]
    _library.define(schema)
    torch.library.register_fake(f"superscaler::{name}", shapes, lib=_library)


def _derivative(name: str, save: Callable[..., None], backward: Callable[..., Any]) -> None:
    torch.library.register_autograd(f"superscaler::{name}", backward, setup_context=save, lib=_library)


# linear: x[*b k], weight[n k], bias[n] -> [*b n]

_define("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
        lambda x, weight, bias: x.new_empty(*x.shape[:-1], weight.shape[0]))  # fmt: skip
_define("linear_input_gradient(Tensor dy, Tensor weight) -> Tensor",
        lambda dy, weight: dy.new_empty(*dy.shape[:-1], weight.shape[1]))  # fmt: skip
_define("linear_weight_gradient(Tensor dy, Tensor x) -> Tensor",
        lambda dy, x: dy.new_empty(dy.shape[-1], x.shape[-1]))  # fmt: skip
_define("linear_bias_gradient(Tensor dy) -> Tensor", lambda dy: dy.new_empty(dy.shape[-1]))


def _linear_save(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])


def _linear_backward(ctx: Any, dy: Tensor) -> Any:
    x, weight = ctx.saved_tensors
    needs = ctx.needs_input_grad
    return (
        _ops.linear_input_gradient(dy, weight) if needs[0] else None,
        _ops.linear_weight_gradient(dy, x) if needs[1] else None,
        _ops.linear_bias_gradient(dy) if needs[2] else None,
    )


_derivative("linear", _linear_save, _linear_backward)


# attention: q[b h s e], k[b g t e], v[b g t f], mask -> out[b h s f], lse[b h s]; h is a multiple of g
# The outputs lie in memory as [b s h f], which is how every kernel writes them.


def _heads_last(like: Tensor) -> Tensor:
    batch, heads, length, width = like.shape
    return like.new_empty(batch, length, heads, width).transpose(1, 2)


def _attention_shapes(q: Tensor, k: Tensor, v: Tensor, mask: Any, causal: bool, scale: float) -> Any:
    out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3]).transpose(1, 2)
    lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return out, q.new_empty(q.shape[:3], dtype=lse_dtype)


_define("attention(Tensor q, Tensor k, Tensor v, Tensor? mask, *, bool causal, float scale) "
        "-> (Tensor, Tensor)",
        _attention_shapes)  # fmt: skip
_define("attention_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor? mask, "
        "*, bool causal, float scale) -> (Tensor, Tensor, Tensor)",
        lambda dout, q, k, v, *rest, **options: (_heads_last(q), _heads_last(k), _heads_last(v)))  # fmt: skip


_define("attention_mask_gradient(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor mask, "
        "*, bool causal, float scale) -> Tensor",
        lambda dout, q, k, v, out, lse, mask, **options: torch.empty_like(mask))  # fmt: skip


def _attention_save(ctx: Any, inputs: Any, keyword_only_inputs: Any, output: Any) -> None:
    q, k, v, mask = inputs
    ctx.save_for_backward(q, k, v, mask, *output)
    ctx.options = keyword_only_inputs
    ctx.mark_non_differentiable(output[1])


def _attention_backward(ctx: Any, dout: Tensor, dlse: Any) -> Any:
    q, k, v, mask, out, lse = ctx.saved_tensors
    dq, dk, dv = _ops.attention_backward(dout, q, k, v, out, lse, mask, **ctx.options)
    dmask = None
    if ctx.needs_input_grad[3]:
        dmask = _ops.attention_mask_gradient(dout, q, k, v, out, lse, mask, **ctx.options)
    return dq, dk, dv, dmask


_derivative("attention", _attention_save, _attention_backward)


# cross entropy: logits[n v], target[n] -> lse[n], picked[n]; the loss of a row is lse - picked


def _cross_entropy_shapes(logits: Tensor, target: Tensor) -> Any:
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return logits.new_empty(logits.shape[0], dtype=dtype), logits.new_empty(logits.shape[0], dtype=dtype)


_define("cross_entropy(Tensor logits, Tensor target) -> (Tensor, Tensor)", _cross_entropy_shapes)
_define("cross_entropy_backward(Tensor dlse, Tensor dpicked, Tensor logits, Tensor target, Tensor lse) "
        "-> Tensor",
        lambda dlse, dpicked, logits, target, lse: torch.empty_like(logits))  # fmt: skip


def _cross_entropy_save(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs, output[0])


def _cross_entropy_backward(ctx: Any, dlse: Tensor, dpicked: Tensor) -> Any:
    return _ops.cross_entropy_backward(dlse, dpicked, *ctx.saved_tensors), None


_derivative("cross_entropy", _cross_entropy_save, _cross_entropy_backward)


# dropout: x, step -> x * mask / (1 - p); the mask depends on (key, step, global element) alone

_define("dropout(Tensor x, Tensor step, *, float p, int key) -> Tensor",
        lambda x, step, p, key: torch.empty_like(x))  # fmt: skip
_define("dropout_backward(Tensor dy, Tensor step, *, float p, int key) -> Tensor",
        lambda dy, step, p, key: torch.empty_like(dy))  # fmt: skip


def _dropout_save(ctx: Any, inputs: Any, keyword_only_inputs: Any, output: Any) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.options = keyword_only_inputs


_derivative(
    "dropout",
    _dropout_save,
    lambda ctx, dy: (_ops.dropout_backward(dy, *ctx.saved_tensors, **ctx.options), None),
)


def _with_heads(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[tuple[int, ...], Any]:
    """The leading dims of the result, and q, k, v and mask with the dims [batch, heads, length, size].

    Dims before the heads become the batch; a missing one has one element. Keys and values may have fewer heads
    than queries.
    """
    rows = torch.broadcast_shapes(q.shape[:-3], k.shape[:-3], v.shape[:-3])
    heads = [x.shape[-3] if x.dim() > 2 else 1 for x in (q, k, v)]
    widest = max(heads)
    if heads[1] != heads[2]:
        k, v = (x.repeat_interleave(widest // own, -3) for x, own in zip((k, v), heads[1:], strict=True))

    def shaped(x: Tensor, is_query: bool = False) -> Tensor:
        own = widest if is_query else x.shape[-3] if x.dim() > 2 else 1
        wide = (*rows, own, *x.shape[-2:])
        x = x if x.shape == wide else x.expand(wide)
        return x if len(rows) == 1 else x.reshape(-1, *wide[-3:])

    if mask is not None and mask.dim() > 3 and len(rows) > 1:
        mask = shaped(mask)
    return (*rows, widest)[-max(q.dim(), k.dim()) + 2 :], (shaped(q, True), shaped(k), shaped(v), mask)


class Capture:
    """Maps calls of ``torch.nn.functional`` onto whole operators while a model is traced.

    One object serves one trace: it numbers the dropouts, and holds the traced number of the step.
    """

    def __init__(self, step: Tensor) -> None:
        self.step = step
        self.dropouts = 0
        autocast = WholeAutocast()
        self.table: dict[Any, Callable[..., Any]] = {
            F.linear: autocast.lower(self.linear),
            F.scaled_dot_product_attention: autocast.lower(self.attention),
            F.cross_entropy: autocast.single(self.cross_entropy),
            F.dropout: self.dropout,
            F.mse_loss: autocast.single(self.mse_loss),
            F.batch_norm: batch_norm,
            torch._grouped_mm: grouped_mm,  # pyright: ignore[reportPrivateImportUsage]
            F.dropout1d: self.feature_dropout,
            F.dropout2d: self.feature_dropout,
            F.dropout3d: self.feature_dropout,
            F.channel_shuffle: self.channel_shuffle,
            F.embedding_bag: self.embedding_bag,
            F.logsigmoid: self.logsigmoid,
        }

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """As ``F.linear``."""
        return _ops.linear(x, weight, bias) if x.dim() > 1 else NotImplemented

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """As ``F.scaled_dot_product_attention``; with dropout, its definition step by step."""
        scale = 1.0 / sqrt(query.shape[-1]) if scale is None else scale
        if dropout_p == 0.0:
            lead, (q, k, v, mask) = _with_heads(query, key, value, attn_mask)
            out = _ops.attention(q, k, v, mask, causal=is_causal, scale=scale)[0]
            return out if len(lead) == 2 else out.reshape(*lead, *out.shape[-2:])
        if enable_gqa:
            key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
        scores = torch.matmul(query, key.transpose(-2, -1)) * scale
        if is_causal:
            seen = scores.new_ones(scores.shape[-2:], dtype=torch.bool).tril()
            scores = scores.masked_fill(seen.logical_not(), float("-inf"))
        if attn_mask is not None:
            scores = (
                scores.masked_fill(attn_mask.logical_not(), float("-inf"))
                if attn_mask.dtype == torch.bool
                else scores + attn_mask
            )
        return torch.matmul(self.dropout(torch.softmax(scores, -1), dropout_p), value)

    def cross_entropy(
        self,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        size_average: Any = None,
        ignore_index: int = -100,
        reduce: Any = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """As ``F.cross_entropy`` for class indices; other forms stay ATen operators."""
        plain = weight is None and label_smoothing == 0.0 and size_average is None and reduce is None
        if not plain or input.dim() != 2 or target.dim() != 1:
            return NotImplemented
        lse, picked = _ops.cross_entropy(input, target)
        counted = target != ignore_index
        rows = torch.where(counted, lse - picked, lse.new_zeros(()))
        if reduction == "none":
            return rows
        return rows.sum() if reduction == "sum" else rows.sum() / counted.sum()

    def dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """As ``F.dropout``, with a mask that no plan can change."""
        if not training or p == 0.0:
            return input
        self.dropouts += 1
        return _ops.dropout(input, self.step, p=p, key=self.dropouts)

    def feature_dropout(
        self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        """As ``F.dropout2d`` and its kin: whole channels [n, c] are dropped."""
        if not training or p == 0.0:
            return input
        channels = input.new_ones(*input.shape[:2], *[1] * (input.dim() - 2))
        return input * self.dropout(channels, p)

    def channel_shuffle(self, input: Tensor, groups: int) -> Tensor:
        """As ``F.channel_shuffle``."""
        return input.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)

    def logsigmoid(self, input: Tensor) -> Tensor:
        """As ``F.logsigmoid``; where softplus is as good as linear, in any type of element."""
        return -F.softplus(-input, 1, 50)

    def embedding_bag(
        self,
        input: Tensor,
        weight: Tensor,
        offsets: Tensor | None = None,
        max_norm: float | None = None,
        norm_type: float = 2,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        per_sample_weights: Tensor | None = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
    ) -> Tensor:
        """As ``F.embedding_bag`` for bags of one size [b, n]."""
        plain = max_norm is None and not scale_grad_by_freq and not sparse and padding_idx is None
        if not plain or input.dim() != 2 or offsets is not None:
            return NotImplemented
        rows = F.embedding(input, weight)
        if per_sample_weights is not None:
            rows = rows * per_sample_weights.unsqueeze(-1)
        return {"sum": rows.sum, "mean": rows.mean, "max": rows.amax}[mode](1)

    def mse_loss(
        self,
        input: Tensor,
        target: Tensor,
        size_average: Any = None,
        reduce: Any = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
    ) -> Tensor:
        """As ``F.mse_loss``, by its definition."""
        if weight is not None or size_average is not None or reduce is not None:
            return NotImplemented
        squares = (input - target).square()
        if reduction == "none":
            return squares
        return squares.sum() if reduction == "sum" else squares.mean()
