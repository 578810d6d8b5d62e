"""Arithmetic against torch's own counter of floating-point operations."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from superscaler.ir.optimizers import SGD
from superscaler.ir.trace import trace
from superscaler.planner.arithmetic import arithmetic
from superscaler.planner.cluster import Cluster
from superscaler.planner.operator_class import class_of
from superscaler.planner.planner import Planner


class Attention(nn.Module):
    def __init__(self, keys=2):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(12, 4 * heads, bias=False) for heads in (4, keys, keys))

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True).square().mean()


class Convolution(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.layer(self.scale * x).square().mean()


def products(model, *inputs):
    graph = trace(model, inputs, optimizer=SGD())
    axes = Planner(graph, Cluster.local(1)).axes
    return sum(arithmetic(axes, operator) for operator in graph.operators if class_of(operator).is_product)


def counted(model, *inputs):
    with (
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        model(*inputs).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 6, 3, stride=2),
        nn.Conv2d(4, 8, 2, stride=2),
        nn.Conv2d(4, 8, 3, groups=2),
        nn.ConvTranspose2d(4, 6, 3, stride=2),
        nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2),
    ],
    ids=str,
)
def test_both_gradients_of_a_convolution_take_as_much_as_the_convolution(layer):
    x = torch.rand(2, 4, 10, 10)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(x)
    assert products(Convolution(layer), x) == 3 * counter.get_total_flops() > 0


@pytest.mark.parametrize("keys", [1, 2, 4])
def test_attention_with_shared_heads(keys):
    """torch's own kernel does four products in the backward; ours, like any that does not store scores, five."""
    model, x = Attention(keys), torch.rand(2, 6, 12)
    scores = 2 * 2 * 4 * 6 * 6 * 4
    assert products(model, x) == counted(model, x) + scores


def test_rows_of_experts_meet_one_matrix_each():
    from superscaler.ir.grouped_mm import grouped_mm

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.rand(4, 8, 6))

        def forward(self, x, ends):
            return grouped_mm(x, self.weight, ends).square().mean()

    ends = torch.tensor([2, 4, 6, 10], dtype=torch.int32)
    assert products(Experts(), torch.rand(10, 8), ends) == 2 * (2 * 10 * 8 * 6), (
        "forward, and the weight's gradient"
    )


def test_work_point_by_point_grows_with_the_elements():
    class Padded(nn.Module):
        def forward(self, x):
            return F.pad(torch.cat([x, x], 1), (1, 2)).square().mean()

    x = torch.rand(5, 64)
    graph = trace(Padded(), (x,))
    axes = Planner(graph, Cluster.local(1)).axes
    assert all(arithmetic(axes, operator) <= 5 * 131 * 2 for operator in graph.operators)


def test_an_embedding_multiplies_nothing():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(1000, 8)

        def forward(self, tokens):
            return self.table(tokens).square().mean()

    graph = trace(Table(), (torch.zeros(2, 3, dtype=torch.long),), optimizer=SGD())
    axes = Planner(graph, Cluster.local(1)).axes
    tables = {operator.kind: operator for operator in graph.operators if "embedding" in operator.kind}
    assert [arithmetic(axes, operator) for operator in tables.values()] == [2 * 3 * 8] * 2
