"""Attention and its gradient equal F.scaled_dot_product_attention under autograd, on every path."""

import importlib
import math

import pytest
import torch
import torch.nn.functional as F

from superscaler.runtime import ops

attention_module = importlib.import_module("superscaler.runtime.ops.attention")
"""The module; the package's attribute of that name is the function."""

CASES = [
    # queries, keys, value size, causal, mask
    (8, 8, 16, True, None),
    (8, 8, 16, False, None),
    (5, 9, 16, True, None),
    (9, 5, 16, True, None),
    (8, 8, 16, False, "add"),
    (8, 8, 16, False, "bool"),
    (8, 8, 16, False, "per head"),
    (8, 8, 24, False, None),
    (8, 8, 24, True, None),
    (5, 9, 24, False, "bool"),
    (5, 9, 16, False, "per key"),
    (5, 9, 24, False, "per key"),
]


def make_mask(kind, s, t, dtype):
    if kind is None:
        return None
    if kind == "bool":
        return (torch.rand(s, t) > 0.3).index_fill_(1, torch.tensor([0]), True)
    if kind == "left padding":  # of the second sample the first half may not be looked at; a pad sees itself
        seen = torch.ones(2, 1, s, t, dtype=torch.bool)
        seen[1, :, :, : t // 2] = False
        return seen | torch.ones(s, t, dtype=torch.bool).triu() & torch.ones(s, t, dtype=torch.bool).tril()
    if kind == "per key":
        return torch.randn(2, 1, 1, t, dtype=dtype)
    return torch.randn((2, 4, s, t) if kind == "per head" else (s, t), dtype=dtype)


def make_inputs(s, t, f, dtype):
    sizes = [(s, 16), (t, 16), (t, f)]
    return [torch.randn(2, length, 4, size, dtype=dtype).transpose(1, 2) for length, size in sizes]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("s", "t", "f", "causal", "kind"), CASES)
def test_equals_torch(s, t, f, causal, kind, dtype):
    torch.manual_seed(0)
    q, k, v = make_inputs(s, t, f, dtype)
    mask = make_mask(kind, s, t, dtype)
    reference = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(*reference, mask, 0.0, causal, scale=0.25)
    dout = torch.randn_like(expected)
    expected.backward(dout)
    out, lse = ops.attention(q, k, v, mask, causal=causal, scale=0.25)
    gradients = ops.attention_backward(dout, q, k, v, out, lse, mask, causal=causal, scale=0.25)
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype.itemsize == 2 else {}
    torch.testing.assert_close(out, expected.detach(), **tolerance)
    for gradient, x in zip(gradients, reference, strict=True):
        torch.testing.assert_close(gradient, x.grad, **tolerance)


@pytest.mark.parametrize("force_math", [False, True])
@pytest.mark.parametrize("key_heads", [1, 2])
@pytest.mark.parametrize("mask_shape", [None, (2, 4, 6, 9), (4, 1, 9), (6, 9)])
def test_query_heads_that_share_keys_equal_torch(key_heads, mask_shape, force_math, monkeypatch):
    torch.manual_seed(0)
    if force_math:
        monkeypatch.setattr(attention_module, "_kernel", lambda *rest: "math")
    q, k, v = (torch.randn(2, heads, size, 8, dtype=torch.float64, requires_grad=True)
               for heads, size in ((4, 6), (key_heads, 9), (key_heads, 9)))  # fmt: skip
    mask = torch.randn(mask_shape, dtype=torch.float64, requires_grad=True) if mask_shape else None
    expected = F.scaled_dot_product_attention(q, k, v, mask, scale=0.3, enable_gqa=True)
    dout = torch.randn_like(expected)
    expected.backward(dout)
    with torch.no_grad():
        out, lse = ops.attention(q, k, v, mask, causal=False, scale=0.3)
        gradients = ops.attention_backward(dout, q, k, v, out, lse, mask, causal=False, scale=0.3)
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(gradients, (q.grad, k.grad, v.grad))
        if mask is not None:
            dmask = ops.attention_mask_gradient(dout, q, k, v, out, lse, mask, causal=False, scale=0.3)
            torch.testing.assert_close(dmask, mask.grad)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [None, "add", "bool", "per head", "per key", "left padding"])
@pytest.mark.parametrize("pieces", [(4, 4), (3, 1, 4), (1, 7), (7, 1)])
@pytest.mark.parametrize(("t", "f"), [(8, 16), (8, 24), (5, 16), (11, 16)])
def test_pieces_of_causal_queries_make_the_whole(t, f, pieces, kind, dtype):
    torch.manual_seed(0)
    q, k, v = make_inputs(8, t, f, dtype)
    mask = make_mask(kind, 8, t, dtype)
    options = {"causal": True, "scale": 0.25}
    out, lse = ops.attention(q, k, v, mask, **options)
    dout = torch.randn_like(out)
    whole = (out, lse, *ops.attention_backward(dout, q, k, v, out, lse, mask, **options))
    parts = []
    for i, size in enumerate(pieces):
        start = sum(pieces[:i])
        q_, dout_ = (x.narrow(2, start, size) for x in (q, dout))
        mask_ = mask.narrow(-2, start, size) if mask is not None and mask.shape[-2] > 1 else mask
        out_, lse_ = ops.attention(q_, k, v, mask_, **options, query_start=start)
        gradients = ops.attention_backward(dout_, q_, k, v, out_, lse_, mask_, **options, query_start=start)
        parts.append((out_, lse_, *gradients))
    tolerance = {"rtol": 2e-2, "atol": 3e-2} if dtype.itemsize == 2 else {}
    for number, expected in enumerate(whole):
        own = [part[number] for part in parts]
        torch.testing.assert_close(sum(own) if number > 2 else torch.cat(own, 2), expected, **tolerance)


@pytest.mark.parametrize("f", [16, 24])
def test_log_sum_exp_is_that_of_the_scores(f):
    q, k, v = make_inputs(6, 7, f, torch.float64)
    _, lse = ops.attention(q, k, v, causal=True, scale=0.25)
    scores = (q @ k.transpose(-1, -2) * 0.25).masked_fill(
        ~torch.ones(6, 7, dtype=torch.bool).tril(), -math.inf
    )
    torch.testing.assert_close(lse, scores.logsumexp(-1))


def test_log_sum_exp_is_wider_than_half():
    q, k, v = make_inputs(4, 4, 16, torch.bfloat16)
    assert ops.attention(q, k, v, causal=False, scale=1.0)[1].dtype == torch.float32


@pytest.mark.parametrize("f", [16, 24])
def test_joining_heads_of_the_results_moves_nothing(f):
    q, k, v = make_inputs(8, 8, f, torch.float32)
    out, lse = ops.attention(q, k, v, causal=True, scale=0.25)
    for x in (out, *ops.attention_backward(out, q, k, v, out, lse, causal=True, scale=0.25)):
        assert x.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("causal", [True, False])
def test_math_path_equals_the_fused_one(causal, monkeypatch):
    q, k, v = make_inputs(8, 8, 16, torch.float64)
    out, lse = ops.attention(q, k, v, causal=causal, scale=0.25)
    fused = ops.attention_backward(out, q, k, v, out, lse, causal=causal, scale=0.25)
    monkeypatch.setattr(attention_module, "_kernel", lambda *_: "math")
    plain, plain_lse = ops.attention(q, k, v, causal=causal, scale=0.25)
    torch.testing.assert_close(plain, out)
    torch.testing.assert_close(plain_lse, lse)
    for a, b in zip(
        ops.attention_backward(out, q, k, v, out, lse, causal=causal, scale=0.25), fused, strict=True
    ):
        torch.testing.assert_close(a, b)


def test_a_query_that_may_look_nowhere_gives_zeros_on_the_math_path(monkeypatch):
    monkeypatch.setattr(attention_module, "_kernel", lambda *_: "math")
    q, k, v = make_inputs(3, 3, 16, torch.float32)
    mask = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    out, lse = ops.attention(q, k, v, mask, causal=False, scale=1.0)
    assert (out[:, :, 1] == 0).all()
    gradients = ops.attention_backward(out, q, k, v, out, lse, mask, causal=False, scale=1.0)
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("s", "t", "f", "causal", "kind"), CASES)
def test_equals_torch_on_a_gpu(s, t, f, causal, kind, dtype):
    q, k, v = (x.cuda() for x in make_inputs(s, t, f, dtype))
    mask = make_mask(kind, s, t, dtype)
    mask = None if mask is None else mask.cuda()
    reference = [x.detach().double().requires_grad_() for x in (q, k, v)]
    wide = mask.double() if mask is not None and mask.is_floating_point() else mask
    expected = F.scaled_dot_product_attention(*reference, wide, 0.0, causal, scale=0.25)
    dout = torch.randn_like(expected).to(dtype)
    expected.backward(dout.double())
    out, lse = ops.attention(q, k, v, mask, causal=causal, scale=0.25)
    assert lse.shape == q.shape[:3]
    gradients = ops.attention_backward(dout, q, k, v, out, lse.contiguous(), mask, causal=causal, scale=0.25)
    tolerance = {torch.float64: 1e-9, torch.float32: 2e-3, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(out.double(), expected.detach(), rtol=tolerance, atol=tolerance)
    for gradient, x in zip(gradients, reference, strict=True):
        torch.testing.assert_close(gradient.double(), x.grad, rtol=tolerance, atol=tolerance)
