"""Sample calls: Whole operators and optimizers."""

import torch

from superscaler.runtime import ops
from tests.ir.rule_cases.samples import case, derived, flags, index, real


def attention(heads=3, mask=None, causal=False, key_heads=None):
    """The backward of an attention: the case for its arguments, and what its forward left."""

    def derive(draw):
        q, k, v = draw(2, heads, 5, 4), *(draw(2, key_heads or heads, 5, 4) for _ in "kv")
        bias = draw(*mask) if mask else None
        out, lse = ops.attention(q, k, v, bias, causal=causal, scale=0.5)
        return case(draw(2, heads, 5, 4), q, k, v, out, lse, bias, causal=causal, scale=0.5)

    return derived(derive)


def paged_attention(heads, key_heads, width=4, new=0, window=0):
    """Two sequences on pages of two slots: three new tokens behind two earlier ones, and one behind three."""

    def derive(draw):
        q, k, v = draw(1, heads, 4, 4), draw(1, key_heads, 4, 4), draw(1, key_heads, 4, width)
        keys, values = draw(16, key_heads, 4), draw(16, key_heads, width)
        step = (
            torch.tensor([6, 7, 2, 11]),
            torch.tensor([0, 3, 4]),
            torch.tensor([5, 4]),
            torch.tensor([[7, 3, 1], [4, 5, 0]]),
            torch.tensor([2, 3, 3 if new else 4, 3]),
        )
        visible = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1], [1, 0, 0]], dtype=torch.bool)[:, :new]
        return case(q, k, v, keys, values, *step, visible, page_size=2, scale=0.5, window=window)

    return derived(derive)


def cross_entropy_backward(draw):
    logits, target = draw(5, 6), torch.tensor([0, 5, -100, 3, 2])
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return case(draw(5).to(wide), draw(5).to(wide), logits, target, logits.to(wide).logsumexp(1))


CASES = {
    "linear": [
        case(real(3, 4, 6), real(5, 6), real(5)),
        case(real(4, 6), real(5, 6), None),
    ],
    "linear_input_gradient": [case(real(3, 4, 5), real(5, 6))],
    "linear_weight_gradient": [case(real(3, 4, 5), real(3, 4, 6))],
    "linear_float8": [
        case(real(3, 4, 6), real(5, 6), real(5)),
        case(real(4, 40), real(33, 40), None),
    ],
    "linear_float8_input_gradient": [case(real(3, 4, 5), real(5, 6)), case(real(4, 40), real(40, 33))],
    "linear_float8_weight_gradient": [case(real(3, 4, 5), real(3, 4, 6)), case(real(40, 33), real(40, 16))],
    "linear_bias_gradient": [case(real(3, 4, 5))],
    "attention": [
        case(real(2, 3, 5, 4), real(2, 3, 5, 4), real(2, 3, 5, 4), None, causal=True, scale=0.5),
        case(real(2, 3, 5, 4), real(2, 3, 7, 4), real(2, 3, 7, 6), None, causal=False, scale=1.0),
        case(real(2, 3, 5, 4), real(2, 3, 5, 4), real(2, 3, 5, 4), real(2, 1, 5, 5), causal=False, scale=0.5),
        case(real(2, 3, 5, 4), real(2, 3, 5, 4), real(2, 3, 5, 4), real(5, 5), causal=False, scale=0.5),
        case(real(2, 6, 5, 4), real(2, 3, 5, 4), real(2, 3, 5, 4), None, causal=True, scale=0.5),
        case(real(2, 6, 5, 4), real(2, 2, 7, 4), real(2, 2, 7, 6), flags(2, 6, 1, 7), causal=False, scale=0.5),
        case(real(2, 4, 5, 4), real(2, 1, 5, 4), real(2, 1, 5, 4), real(2, 1, 1, 5), causal=False, scale=0.5),
        case(real(1, 4, 5, 4), real(1, 2, 5, 4), real(1, 2, 5, 4), None, causal=False, scale=0.5),
    ],
    "attention_backward": [
        attention(causal=True),
        attention(mask=(1, 3, 5, 5)),
        attention(heads=6, key_heads=2),
        attention(heads=6, key_heads=3, mask=(2, 6, 5, 5)),
        attention(heads=4, key_heads=1, mask=(2, 1, 1, 5), causal=True),
        attention(heads=2, mask=(5, 5), causal=True),
    ],
    "attention_mask_gradient": [
        attention(mask=(2, 3, 5, 5)),
        attention(mask=(1, 3, 5, 5)),
        attention(mask=(5, 1), causal=True),
        attention(heads=6, key_heads=2, mask=(1, 6, 1, 5)),
    ],
    "paged_attention": [
        paged_attention(3, 3),
        paged_attention(6, 3, new=3),
        paged_attention(4, 2, width=6, window=2),
        paged_attention(4, 1),
    ],
    "cross_entropy": [case(real(5, 6), torch.tensor([0, 5, -100, 3, 2]))],
    "cross_entropy_backward": [derived(cross_entropy_backward)],
    "embedding": [case(real(7, 4), index(7, 3, 5))],
    "embedding_backward": [case(real(3, 5, 4), index(7, 3, 5), num_rows=7)],
    "dropout": [case(real(3, 4, 5), torch.tensor(3), p=0.4, key=7)],
    "dropout_backward": [case(real(3, 4, 5), torch.tensor(3), p=0.4, key=7)],
}  # fmt: skip
