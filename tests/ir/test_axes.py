"""Axes run through the operators they should, and stop where a cut would be wrong."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import gpt
from superscaler.ir.axes import find_axes
from superscaler.ir.interpret import interpret
from superscaler.ir.optimizers import SGD, AdamW
from superscaler.ir.trace import trace
from superscaler.planner.placement import letters_of, letters_to_choose

LAYERS, BATCH, SEQ, WIDTH, HEADS, VOCAB = 2, 6, 10, 16, 4, 11
SIZES = {"layers": LAYERS, "width": WIDTH, "heads": HEADS, "seq": SEQ, "vocab": VOCAB}


@pytest.fixture(scope="module")
def gpt_graph():
    inputs = gpt.example_inputs("tiny", batch=BATCH, **SIZES)
    return trace(gpt.build("tiny", **SIZES), inputs, optimizer=AdamW())


@pytest.fixture(scope="module")
def axes(gpt_graph):
    return find_axes(gpt_graph)


def operators_of(graph, kind):
    found = [operator for operator in graph.operators if operator.kind == kind]
    assert found
    return found


def heads_of(axes, graph, layer):
    (attention,) = (o for o in operators_of(graph, "attention") if o.module == f"h.{layer}.attn")
    (axis,) = axes.letters[attention.name]["heads"]
    return axis


@pytest.mark.parametrize("layer", range(LAYERS))
def test_heads_run_through_qkv_attention_and_projection_forward_and_backward(axes, gpt_graph, layer):
    heads = heads_of(axes, gpt_graph, layer)
    assert (heads.size, heads.name) == (HEADS, "heads")
    at = f"h.{layer}.attn"
    for name in ("q.weight", "q.bias", "k.weight", "v.weight", "v.bias"):
        assert axes.dims[f"{at}.{name}"][0][0] == heads
    assert axes.dims[f"{at}.proj.weight"][1][0] == heads
    assert all(axis != heads for axis in axes.fine(f"{at}.proj.bias"))
    own = [o for o in gpt_graph.operators if o.module.startswith(at) and o.kind != "aten.add.Tensor"]
    through = [o for o in own if any(heads in parts for parts in axes.letters[o.name].values())]
    assert {o.name for o in own} - {o.name for o in through} == {
        o.name for o in own if "proj.bias" in o.name or o.name == f"{at}.proj/linear_bias_gradient"
    }
    assert {"F", "B", "U"} == {str(o.phase) for o in through}
    for operator in through:
        for letter, parts in axes.letters[operator.name].items():
            if heads in parts:
                assert axes.cuttable(operator.name, letter, heads), (operator.name, letter)


def test_cutting_heads_leaves_summands_of_the_projection_and_of_nothing_else(axes, gpt_graph):
    heads = heads_of(axes, gpt_graph, 0)
    summed = []
    for operator in gpt_graph.operators:
        rule, letters = axes.rules[operator.name], axes.letters[operator.name]
        present = [letter for letter, parts in letters.items() if heads in parts]
        for tensor, term in zip(operator.writes, rule.writes, strict=True):
            if present and not set(present) & set(term.letters):
                summed.append(tensor)
    attn = "h.0.attn"
    assert set(summed) == {
        f"{attn}.proj/linear",
        *(f"{attn}.{name}/linear_input_gradient" for name in ("q", "k", "v")),
    }


def test_heads_of_two_layers_are_two_axes(axes, gpt_graph):
    assert heads_of(axes, gpt_graph, 0) != heads_of(axes, gpt_graph, 1)


def test_the_hidden_axis_of_the_mlp_runs_through_both_its_layers(axes, gpt_graph):
    (hidden,) = axes.dims["h.0.mlp.up.weight"][0]
    assert hidden.size == 4 * WIDTH
    assert axes.dims["h.0.mlp.down.weight"][1] == (hidden,)
    through = [o.kind for o in gpt_graph.operators if any(hidden in p for p in axes.letters[o.name].values())]
    assert {"aten.gelu", "aten.gelu_backward", "linear", "linear_input_gradient", "adamw"} <= set(through)


def test_tied_embeddings_share_the_vocabulary(axes, gpt_graph):
    (vocab,) = axes.dims["wte.weight"][0]
    (loss,) = operators_of(gpt_graph, "cross_entropy")
    assert axes.letters[loss.name]["vocab"] == (vocab,)
    (back,) = operators_of(gpt_graph, "cross_entropy_backward")
    assert axes.letters[back.name]["vocab"] == (vocab,)
    assert (vocab.name, vocab.size) == ("vocab", VOCAB)
    assert axes.dims[gpt_graph.gradients["wte.weight"]][0] == (vocab,)


def test_the_batch_runs_through_every_activation_and_through_no_parameter(axes, gpt_graph):
    (batch,), (seq,) = axes.dims["tokens"]
    assert (batch.name, seq.name, batch.size, seq.size) == ("batch", "seq", BATCH, SEQ)
    assert axes.dims["targets"] == ((batch,), (seq,))
    for tensor in gpt_graph.stored():
        assert batch not in axes.fine(tensor.name)
        assert batch not in axes.fine(gpt_graph.updates[tensor.name])
    for operator in gpt_graph.operators:
        if operator.kind in ("linear", "attention", "attention_backward", "cross_entropy", "aten.gelu"):
            assert batch in axes.fine(operator.writes[0])


def test_states_are_cut_like_their_parameter(axes, gpt_graph):
    for name in gpt_graph.gradients:
        for other in (f"{name}/exp_avg", f"{name}/new", f"{name}/exp_avg_sq/new"):
            assert axes.dims[other] == axes.dims[name]


class FusedAttention(nn.Module):
    """Attention whose q, k and v come out of one linear layer, taken apart in one of several ways."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        batch, seq, width = x.shape
        y = self.qkv(x)
        if self.how == "unbind":
            q, k, v = y.view(batch, seq, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            parts = {
                "chunk": lambda: y.chunk(3, -1),
                "split": lambda: y.split(8, -1),
                "slice": lambda: (y[..., :8], y[..., 8:16], y[..., 16:]),
            }[self.how]()
            q, k, v = (part.view(batch, seq, 2, 4).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(attended.transpose(1, 2).reshape(batch, seq, width)).square().sum()


@pytest.mark.parametrize("how", ["chunk", "split", "slice", "unbind"])
def test_a_fused_qkv_stays_right(how):
    torch.manual_seed(0)
    model, x = FusedAttention(how).double(), torch.randn(3, 5, 8, dtype=torch.float64)
    graph = trace(model, (x,), optimizer=SGD())
    results = interpret(graph, {"x": x, "step": 1})
    model(x).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(results[graph.gradients[name]], parameter.grad, rtol=1e-12, atol=1e-12)
    axes = find_axes(graph)
    (heads,) = axes.letters[operators_of(graph, "attention")[0].name]["heads"]
    # Three runs of heads side by side are no axis of the weight; (3, heads, 4) is.
    assert (heads in axes.fine("qkv.weight")) == (how == "unbind")
    assert axes.dims["out.weight"][1][0] == heads


class Similarity(nn.Module):
    """Every row of the batch against every other."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 5), nn.Linear(4, 5)

    def forward(self, x):
        return (self.left(x) @ self.right(x).t()).square().sum()


def test_an_operator_that_meets_one_axis_twice_is_cut_where_it_is_said():
    graph = trace(Similarity(), (torch.randn(6, 4),), optimizer=SGD())
    axes = find_axes(graph)
    (batch,) = axes.dims["x"][0]
    (product, *_) = operators_of(graph, "aten.mm")
    assert axes.dims[product.writes[0]] == ((batch,), (batch,))
    assert axes.shared[product.name] == {batch}
    assert letters_of(axes, product, batch) == ()
    assert letters_to_choose(axes, product, batch) == ("m", "n")
    (features,) = axes.letters[product.name]["k"]
    assert axes.cuttable(product.name, "k", features)
    (left, *_) = operators_of(graph, "linear")
    assert axes.cuttable(left.name, "b0", batch)


class Places(nn.Module):
    """Every place of every sample against every place: rows are (batch, place), columns are places."""

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.randn(5, 4))

    def forward(self, x):
        return ((x + self.place).flatten(0, 1) @ self.place.t()).square().sum()


def test_an_axis_beside_one_that_is_met_twice_is_cut():
    graph = trace(Places(), (torch.randn(6, 5, 4),), optimizer=SGD())
    axes = find_axes(graph)
    (batch,), (place,), _ = axes.dims["x"]
    (product, *_) = operators_of(graph, "aten.mm")
    assert axes.letters[product.name]["m"] == (batch, place)
    assert axes.letters[product.name]["n"] == (place,)
    assert axes.cuttable(product.name, "m", batch)
    assert letters_of(axes, product, place) == ()


class Regroup(nn.Module):
    """Views 12 elements as (3, 4), then as (2, 6): no common boundary, no common axis."""

    def __init__(self):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(2, 6))

    def forward(self, x):
        y = (x.view(-1, 3, 4) * self.scale).view(-1, 2, 6) + self.shift
        return y.square().sum()


def test_groupings_that_do_not_nest_are_kept_whole():
    torch.manual_seed(0)
    graph = trace(Regroup().double(), (torch.randn(5, 12, dtype=torch.float64),), optimizer=SGD())
    axes = find_axes(graph)
    (batch,) = axes.dims["x"][0]
    (regroup,) = (
        o for o in graph.operators if graph.tensors[o.writes[0]].shape == (5, 2, 6) and o.kind == "reshape"
    )
    cuttable = {
        axis
        for letter, parts in axes.letters[regroup.name].items()
        for axis in parts
        if axes.cuttable(regroup.name, letter, axis)
    }
    assert graph.tensors[regroup.reads[0]].shape == (5, 3, 4)
    assert cuttable == {batch}
    assert not set(axes.fine("scale")) & set(axes.fine("shift"))
