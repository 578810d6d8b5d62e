"""Calls that change on the way into a graph compute what eager PyTorch computes, whole and under plans."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from superscaler import compiler
from superscaler.errors import TraceError
from superscaler.ir.interpret import interpret
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


def products_per_expert(x, experts):
    ends = torch.tensor([3, 3, 8], dtype=torch.int32)
    rows = F.grouped_mm(x[:, 0], experts, offs=ends)
    columns = F.grouped_mm(experts.mT, x[:, 1].T, offs=ends)
    return rows @ columns


def rotate(x, w):
    pairs = torch.view_as_complex((x * w).unflatten(-1, (3, 2)))
    angles = torch.arange(5, dtype=x.dtype)[:, None] * w[:3]
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def smooth_losses(x, w):
    y = x @ w
    return (
        F.smooth_l1_loss(y, x)
        + F.huber_loss(y, x, delta=0.5)
        + F.l1_loss(y, x)
        + F.soft_margin_loss(y, x.sign())
    )


def binary_losses(x, w):
    y, wanted = x @ w, x.sigmoid()
    weights = torch.arange(6, dtype=x.dtype)
    return F.binary_cross_entropy_with_logits(y, wanted, pos_weight=weights) + F.binary_cross_entropy(
        y.sigmoid(), wanted
    )


def class_losses(x, w):
    y = (x @ w).flatten(0, 1)
    target, weights = (x.sum(-1).flatten() > 0).long(), torch.arange(6, dtype=x.dtype) + 0.5
    weighted = F.cross_entropy(y, target, weight=weights, label_smoothing=0.1)
    return (
        weighted
        + F.nll_loss(y.log_softmax(-1), target, ignore_index=1)
        + F.kl_div(y, y.softmax(-1), reduction="batchmean")
    )


def losses_over_space(x, w):
    y = (x @ w).transpose(1, 2)
    return F.cross_entropy(y, (x.sum(-1) > 0).long()) + F.cross_entropy(
        y[..., None], (x.sum(-1) > 0).long()[..., None]
    )


def activations(x, w):
    y = x @ w
    return (
        F.logsigmoid(y * 30) + F.mish(y) + F.elu(y) + F.prelu(y, w[0, :5]) + F.glu(torch.cat([y, y * 2], -1))
    )


def shuffle(x, w):
    y = F.channel_shuffle((x @ w).transpose(1, 2), 3)
    return F.pixel_shuffle(y[..., :4].unflatten(-1, (2, 2))[:, :4], 2)


def bags(x, table):
    index = (x[:, :, 0].abs() * 3).long()
    return sum(F.embedding_bag(index, table, mode=mode) for mode in ("sum", "mean", "max"))


def pools(x, w):
    y = (x @ w)[:, None]
    return (
        F.max_pool2d(y, 2)
        + F.avg_pool2d(y, 2)
        + F.adaptive_avg_pool2d(y, (2, 3))
        + F.adaptive_max_pool2d(y, (2, 3))
    )


def resamples(x, w):
    y = (x @ w)[:, None]
    nearest, smooth = F.interpolate(y, scale_factor=2), F.interpolate(y, (10, 12), mode="bilinear")
    return nearest * smooth + F.interpolate(F.pad(y, (1, 1, 2, 2), "reflect"), (10, 12), mode="bicubic")


def reduces(x, w):
    y = x @ w
    spread = y.var(-1) + y.std(1).sum(-1, keepdim=True) + y.norm(dim=-1) + y.prod(-1)
    largest = (
        y.amax(-1)
        + y.max(-1).values
        + y.topk(2).values.sum(-1)
        + y.sort().values[..., 0]
        + y.median(-1).values
    )
    return (
        spread
        + largest
        + y.logsumexp(-1)
        + y.cumsum(-1)[..., 3]
        + y.cumprod(1)[..., 0]
        + y.logcumsumexp(-1)[..., 1]
    )


def looks_up(x, w):
    y, index = x @ w, torch.tensor([4, 0, 2])
    picked = y[:, index] + y.index_select(1, index) + y.gather(1, index[None, :, None].expand(8, 3, 6))
    written = torch.zeros_like(y)
    written[:, index] = picked
    added = torch.zeros_like(y).index_add(1, index, picked) + written
    scattered = torch.zeros_like(y).scatter_reduce(1, index[None, :, None].expand(8, 3, 6), picked, "sum")
    return (
        added
        + scattered
        + y.diagonal(0, 1, 2).sum(-1)[:, None, None]
        + y.unfold(1, 2, 3).sum((1, 3))[:, None]
    )


CASES = {
    rotate: ((8, 5, 6), [(6,)]),
    smooth_losses: ((8, 5, 6), [(6, 6)]),
    binary_losses: ((8, 5, 6), [(6, 6)]),
    class_losses: ((8, 5, 6), [(6, 6)]),
    losses_over_space: ((8, 5, 6), [(6, 6)]),
    activations: ((8, 5, 6), [(6, 6)]),
    shuffle: ((8, 6, 6), [(6, 6)]),
    bags: ((8, 5, 6), [(16, 4)]),
    pools: ((8, 4, 6), [(6, 6)]),
    resamples: ((8, 5, 6), [(6, 6)]),
    reduces: ((8, 5, 6), [(6, 6)]),
    looks_up: ((8, 5, 6), [(6, 6)]),
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


WITHOUT_PRODUCTS = (no_heads, group_norm, join_with_nothing, repeat, restride, rotate, bags, smooth_losses,
                    binary_losses, activations)  # fmt: skip
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


@pytest.mark.parametrize(("plan", "devices"), [("none", 1), ("dp=2", 2), ("tp=2", 2)])
def test_a_product_per_expert_computes_as_eager_under_a_plan(plan, devices):
    torch.manual_seed(0)
    model, inputs = Model(products_per_expert, (3, 6, 4)), (torch.randn(8, 2, 6),)
    made = compiler.plan(trace(model, inputs, optimizer=SGD()), Cluster.local(devices), plan).verify()
    comparison = made.compare_with_eager(model, inputs)
    assert comparison.largest < 1e-5, comparison.worst


@pytest.mark.parametrize(
    ("draw", "name"),
    [
        (torch.rand_like, "rand_like"),
        (torch.randn_like, "randn_like"),
        (lambda x: x.clone().normal_(), "normal"),
        (torch.bernoulli, "bernoulli"),
    ],
)
def test_random_numbers_are_refused_with_the_line_and_the_remedy(draw, name):
    model = Model(lambda x, w: x * w * draw(x.abs().clamp(0, 1)), (4,))
    with pytest.raises(TraceError, match=rf"(?s){name}.*other results.*test_import_fx\.py.*F\.dropout"):
        trace(model, (torch.randn(4, 4),), optimizer=SGD())


@pytest.mark.parametrize("drop", [F.dropout1d, F.dropout2d, F.dropout3d])
def test_features_are_dropped_whole(drop):
    x = torch.randn(8, 16, 5, 4, dtype=torch.float64)
    graph = trace(Model(lambda x, w: drop(x * w, 0.4), (4,)), (x,), loss=lambda y: y, optimizer=SGD())
    mask = interpret(graph, {"x": x, "step": 1}, keep="all")["dropout"]
    assert mask.shape == (8, 16, 1, 1)
    assert set(mask.unique().tolist()) == {0.0, 1 / 0.6}


def test_striding_over_a_view_is_refused_with_the_line_and_the_remedy():
    model = Model(lambda x, w: (x * w).transpose(0, 1).as_strided((3, 2), (1, 1)), (4,))
    with pytest.raises(TraceError, match=r"(?s)as_strided.*view.*test_import_fx\.py.*contiguous"):
        trace(model, (torch.randn(4, 4),), optimizer=SGD())


def test_the_backward_of_a_square_multiplies_by_the_value_itself():
    model = nn.Linear(4, 4).double()
    graph = trace(
        model, {"input": torch.zeros(2, 4).double()}, loss=lambda y: y.square().sum(), optimizer=SGD()
    )
    powers = [operator for operator in graph.operators if operator.kind == "aten.pow.Tensor_Scalar"]
    assert [operator.arguments[1] for operator in powers] == [2]
    made = compiler.plan(graph, Cluster.local(1))
    found = made.compare_with_eager(
        model, {"input": torch.randn(2, 4).double()}, loss=lambda y: y.square().sum()
    )
    assert found.largest < 1e-12
