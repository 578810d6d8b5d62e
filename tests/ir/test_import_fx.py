"""Calls that change on the way into a graph compute what eager PyTorch computes, whole and under plans."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from superscaler import compiler
from superscaler.errors import TraceError
from superscaler.ir.optimizers import SGD
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster


class Model(nn.Module):
    """Parameters of the given shapes, and a function of the input and them."""

    def __init__(self, forward, *shapes):
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(shape) / 2) for shape in shapes])
        self.compute = forward

    def forward(self, x):
        return self.compute(x, *self.weights).square().mean()


def attend(x, bias=None, **options):
    q, k, v = (
        x[..., first:last].unflatten(-1, (-1, 4)).transpose(1, 2)
        for first, last in ((0, 16), (16, 24), (24, 32))
    )
    return F.scaled_dot_product_attention(q, k, v, bias, **options)


def shared_heads(x, w):
    return attend(x @ w, is_causal=True, enable_gqa=True)


def one_head_of_keys(x, w):
    q, k, v = (x @ w).unflatten(-1, (6, 4)).transpose(1, 2).split([4, 1, 1], 1)
    return F.scaled_dot_product_attention(q, k, v)


def learned_bias(x, w, bias):
    return attend(x @ w, bias, enable_gqa=True)


def no_heads(x, w):
    return F.scaled_dot_product_attention(x @ w, x, x * 2, scale=0.5)


def many_leading_dims(x, w, bias):
    q = (x @ w).unflatten(-1, (2, 3, 4)).permute(0, 2, 3, 1, 4)
    return F.scaled_dot_product_attention(q, q * 2, q.square(), bias)


def convolve(x, w, b):
    return F.conv1d(x, w, b, padding=1)


def convolve_in_groups(x, w, b):
    return F.conv1d(x, w, b, groups=3, stride=2)


def convolve_depthwise(x, w):
    return F.conv1d(x, w, groups=6)


def convolve_back(x, w, b):
    return F.conv_transpose1d(x, w, b, stride=2)


def group_norm(x, w, b):
    return F.group_norm(x, 3, w, b)


def join_with_nothing(x, w):
    cache = torch.tensor([], dtype=x.dtype)
    return torch.cat([torch.cat([cache, x * w], -1), cache, x], -1)


def repeat(x, w):
    return (x * w).repeat(1, 2, 3) + w.repeat(2)[None, None].repeat(8, 1, 3)[..., : 3 * w.numel()].sum()


def restride(x, w):
    return (x * w).as_strided((8, 6, 3), (30, 5, 1)) @ w[:3]


CASES = {
    shared_heads: ((8, 5, 6), [(6, 32)]),
    one_head_of_keys: ((8, 5, 6), [(6, 24)]),
    learned_bias: ((8, 5, 6), [(6, 32), (4, 5, 5)]),
    no_heads: ((8, 5, 6), [(6, 6)]),
    many_leading_dims: ((8, 5, 6), [(6, 24), (1, 1, 3, 1, 5)]),
    convolve: ((8, 6, 5), [(4, 6, 3), (4,)]),
    convolve_in_groups: ((8, 6, 5), [(6, 2, 3), (6,)]),
    convolve_depthwise: ((8, 6, 5), [(6, 1, 3)]),
    convolve_back: ((8, 6, 5), [(6, 4, 3), (4,)]),
    group_norm: ((8, 6, 5), [(6,), (6,)]),
    join_with_nothing: ((8, 6, 5), [(5,)]),
    repeat: ((8, 6, 5), [(5,)]),
    restride: ((8, 6, 5), [(5,)]),
}


WITHOUT_PRODUCTS = (no_heads, group_norm, join_with_nothing, repeat, restride)
"""What has no weight that tensor parallelism could cut."""

PLANS = [
    *((forward, "none", 1) for forward in CASES),
    *((forward, "dp=2", 2) for forward in CASES),
    *((forward, "tp=2", 2) for forward in CASES if forward not in WITHOUT_PRODUCTS),
]


@pytest.mark.parametrize(
    ("forward", "plan", "devices"), PLANS, ids=[f"{plan}-{forward.__name__}" for forward, plan, _ in PLANS]
)
def test_computes_as_eager_under_a_plan(forward, plan, devices):
    torch.manual_seed(0)
    shape, weights = CASES[forward]
    model, inputs = Model(forward, *weights).double(), (torch.randn(shape, dtype=torch.float64),)
    graph = trace(model, inputs, optimizer=SGD())
    made = compiler.plan(graph, Cluster.local(devices), plan).verify()
    comparison = made.compare_with_eager(model, inputs)
    assert comparison.largest < 1e-11, comparison.worst


def test_striding_over_a_view_is_refused_with_the_line_and_the_remedy():
    model = Model(lambda x, w: (x * w).transpose(0, 1).as_strided((3, 2), (1, 1)), (4,))
    with pytest.raises(TraceError, match=r"(?s)as_strided.*view.*test_import_fx\.py.*contiguous"):
        trace(model, (torch.randn(4, 4),), optimizer=SGD())
