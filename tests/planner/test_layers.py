"""Stages are runs of layers of nearly equal work, whatever lists a model keeps its layers in."""

from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from models import gpt, mbart, swin
from superscaler.errors import PlanError
from superscaler.ir.axes import find_axes
from superscaler.ir.optimizers import SGD
from superscaler.ir.trace import trace
from superscaler.planner.layers import even_runs, layers, module_work
from superscaler.planner.selection import split, split_layers
from tests.planner.samples import gpt_graph, mlp_graph


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(1, 8))
def test_runs_have_the_least_squares_of_all(work, count):
    count = min(count, len(work))
    runs = even_runs(work, count)
    assert [runs[0][0], *(stop for _, stop in runs)] == [*(start for start, _ in runs), len(work)]
    assert all(start < stop for start, stop in runs)
    every = [
        [sum(work[a:b]) for a, b in zip((0, *cuts), (*cuts, len(work)), strict=True)]
        for cuts in combinations(range(1, len(work)), count - 1)
    ]
    squares = [sum(total**2 for total in totals) for totals in every]
    assert sum(sum(work[start:stop]) ** 2 for start, stop in runs) == min(squares)


@pytest.mark.parametrize("number", [4, 7, 10, 96])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_runs_of_equal_layers_differ_by_one(number, count):
    lengths = [stop - start for start, stop in even_runs([3.0] * number, count)]
    assert sum(lengths) == number
    assert max(lengths) - min(lengths) <= 1


def traced(model, **inputs):
    return trace(model.double(), inputs, loss=lambda out: out.sum(), optimizer=SGD())


def modules(selection):
    return list(dict.fromkeys(o.module for o in selection if o.module and o.phase == "F"))


def test_the_work_of_linear_layers_is_their_multiplications_and_additions():
    layers = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False))
    graph = traced(layers, input=torch.zeros(5, 4, dtype=torch.float64))
    work = module_work(graph, find_axes(graph))
    assert [work[module] for module in "012"] == [2 * 5 * 4 * 6, 5 * 6, 2 * 5 * 6 * 3]


def test_the_work_of_attention_is_two_products():
    q, k, v = (
        torch.zeros(2, 3, size, width, dtype=torch.float64) for size, width in ((5, 4), (7, 4), (7, 6))
    )
    graph = trace(Attends(), (q, k, v))
    assert module_work(graph, find_axes(graph))["attend"] == 2 * (2 * 3 * 5 * 7) * (4 + 6)


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.attend = Attention()

    def forward(self, q, k, v):
        return self.attend(q, k, v)


class Attention(nn.Module):
    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v)


def linear(columns, rows):
    return nn.Linear(columns, rows, bias=False)


class TwoLists(nn.Module):
    """Two layers, then three three times as wide, of which the last is a perceptron of two."""

    def __init__(self):
        super().__init__()
        self.first = nn.ModuleList(linear(4, 4) for _ in range(2))
        self.widen = linear(4, 12)
        wide = [linear(12, 12), linear(12, 12), nn.Sequential(linear(12, 12), linear(12, 12))]
        self.second = nn.ModuleDict({"layers": nn.ModuleList(wide)})

    def forward(self, x):
        for layer in self.first:
            x = layer(x)
        x = self.widen(x)
        for layer in self.second["layers"]:
            x = layer(x)
        return x


def test_layers_are_those_of_all_lists_in_order_of_use():
    graph = traced(TwoLists(), x=torch.zeros(2, 4, dtype=torch.float64))
    axes = find_axes(graph)
    small, wide = 2 * 2 * 4 * 4, 2 * 2 * 12 * 12
    assert layers(graph, axes, 1) == {
        "first.0": small,
        "first.1": small,
        "second.layers.0": wide,
        "second.layers.1": wide,
        "second.layers.2": 2 * wide,
    }


def test_a_heavy_layer_that_is_but_a_list_is_opened():
    graph = traced(TwoLists(), x=torch.zeros(2, 4, dtype=torch.float64))
    parts = split_layers(graph, find_axes(graph), 4)
    assert [modules(part)[-1] for part in parts] == [
        "second.layers.0",
        "second.layers.1",
        "second.layers.2.0",
        "second.layers.2.1",
    ]


class NumberedPerceptron(nn.Module):
    """A linear layer, then a perceptron whose layers have numbers."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(4, 4)
        self.mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x):
        return self.mlp(self.mix(x))


def test_a_layer_with_numbered_parts_beside_others_stays_whole():
    model = nn.Sequential(NumberedPerceptron(), NumberedPerceptron())
    graph = traced(model, input=torch.zeros(3, 4, dtype=torch.float64))
    assert list(layers(graph, find_axes(graph), 2)) == ["0", "1"]


def test_a_decoder_follows_its_encoder():
    graph = trace(mbart.build("tiny", layers=3), mbart.example_inputs("tiny", batch=2), optimizer=SGD())
    parts = split_layers(graph, find_axes(graph), 2)
    # a decoder's layer has two attentions: three and one make about as much as two
    first, second = ([".".join(m.split(".")[:3]) for m in modules(part)] for part in parts)
    assert set(first) == {"encoder.layers.0", "encoder.layers.1", "encoder.layers.2", "decoder.layers.0"}
    assert set(second) == {"decoder.layers.1", "decoder.layers.2"}


def test_a_swin_transformer_is_cut_between_blocks():
    sizes = {"depths": (2, 2, 6, 2), "heads": (1, 2, 4, 8), "image": 128}
    graph = trace(swin.build("tiny", **sizes), swin.example_inputs("tiny", batch=1, **sizes), optimizer=SGD())
    axes = find_axes(graph)
    work = layers(graph, axes, 4)
    totals = [
        sum(
            amount
            for module, amount in work.items()
            if any(name.startswith(f"{module}.") for name in modules(part))
        )
        for part in split_layers(graph, axes, 4)
    ]
    assert max(totals) < 1.3 * sum(totals) / 4
    assert sum(totals) == sum(work.values())


def test_split_by_a_pattern_weighs_its_modules():
    graph = traced(TwoLists(), x=torch.zeros(2, 4, dtype=torch.float64))
    first, second = split(graph, find_axes(graph), "second.layers.*", 2)
    assert modules(first) == ["second.layers.0", "second.layers.1"]
    assert modules(second) == ["second.layers.2.0", "second.layers.2.1"]


def test_a_model_without_layers_or_with_too_few_is_refused():
    graph = mlp_graph()
    with pytest.raises(PlanError, match="no numbered modules"):
        split_layers(graph, find_axes(graph), 2)
    graph = gpt_graph()
    with pytest.raises(PlanError, match="the 2 layers of 'gpt' cannot make 3 parts"):
        split_layers(graph, find_axes(graph), 3)


def test_stages_may_have_any_number_of_layers():
    batch = gpt.example_inputs("tiny", batch=2, layers=5)
    graph = trace(gpt.build("tiny", layers=5), batch, optimizer=SGD())
    axes = find_axes(graph)
    parts = split_layers(graph, axes, 2, (1, 4))
    modules = [{o.module.split(".")[1] for o in part if o.module.startswith("h.")} for part in parts]
    assert modules == [{"0"}, {"1", "2", "3", "4"}]
    for counts in ((2, 2), (1, 1, 3)):
        with pytest.raises(PlanError, match=r"give 2 numbers whose sum is 5"):
            split_layers(graph, axes, 2, counts)
