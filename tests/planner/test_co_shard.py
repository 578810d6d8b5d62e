"""What runs piece after piece computes the same, one piece at a time, and is refused where pieces need each other."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models import llama, swin
from superscaler.errors import PlanError
from superscaler.ir.axes import find_axes
from superscaler.ir.graph import Phase
from superscaler.ir.interpret import interpret
from superscaler.ir.optimizers import AdamW
from superscaler.ir.tensor import Role
from superscaler.ir.trace import trace
from superscaler.ir.verify import verify_graph
from superscaler.planner.co_shard import runs_in_pieces
from superscaler.planner.show import format_communication, format_plan
from tests.codegen.plans import planned, tiny_gpt


def traced(model, inputs):
    return trace(model, inputs, optimizer=AdamW())


def tiny_llama():
    torch.manual_seed(0)
    sizes = {"layers": 1, "width": 16, "heads": 4, "kv_heads": 2, "inner": 24, "seq": 6, "vocab": 16}
    model, inputs = llama.build("tiny", **sizes).double(), llama.example_inputs("tiny", batch=4, **sizes)
    return inputs, traced(model, inputs)


def tiny_swin():
    torch.manual_seed(0)
    model = swin.build("tiny", image=16, window=2, channels=8, dropout=0.1).double()
    inputs = swin.example_inputs("tiny", batch=4, image=16, window=2, channels=8)
    inputs["images"] = inputs["images"].double()
    return inputs, traced(model, inputs)


class HiddenDropout(nn.Module):
    """A perceptron that drops hidden units, and groups some inside a dim that is cut."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 12), nn.Linear(12, 4)
        self.drop = nn.Dropout(0.4)

    def forward(self, x):
        hidden = self.drop(self.up(x)).unflatten(-1, (6, 2)) * 2
        return self.down(self.drop(hidden.flatten(-2).tanh())).square().sum()


def hidden_dropout():
    torch.manual_seed(0)
    inputs = {"x": torch.randn(6, 4, dtype=torch.float64)}
    return inputs, traced(HiddenDropout().double(), inputs)


GRAPHS = {
    "gpt": lambda: tiny_gpt(layers=1, batch=4, dropout=0.2)[1:],
    "llama": tiny_llama,
    "swin": tiny_swin,
    "perceptron": hidden_dropout,
}


@pytest.fixture(scope="module")
def graphs():
    return {name: make() for name, make in GRAPHS.items()}


def results_of(graph, inputs):
    states = {t.name: torch.zeros(t.shape, dtype=torch.float64) for t in graph.of_role(Role.STATE)}
    return interpret(graph, {**graph.values, **inputs, **states, "step": 3})


def assert_same(graph, other, inputs):
    verify_graph(other)
    ours, theirs = results_of(other, inputs), results_of(graph, inputs)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-12, atol=1e-14, msg=name)


def in_pieces(*arguments, **keywords):
    """A script for one device, which co-shards (pattern, axis, pieces) one by one."""

    def script(p):
        p.assign(p.everything(), p.mesh([0]))
        for pattern, axis, pieces in arguments:
            p.co_shard(p.select(pattern), axis, pieces=pieces, **keywords)

    return script


@pytest.mark.parametrize(
    ("model", "blocks"),
    [
        ("gpt", [("h.0.attn", "heads", 2)]),
        ("gpt", [("h.0", None, 4)]),
        ("gpt", [("h.0.mlp", "seq", 4), ("h.0.attn", None, 2)]),
        ("gpt", [("h.0", "batch", 2)]),
        ("llama", [("layers.0", None, 2)]),
        ("llama", [("layers.0.mlp", "seq", 3)]),
        ("swin", [("stages.1.blocks.*", None, 2)]),
        ("perceptron", [("*", "up.out", 2)]),
        ("perceptron", [("*", "batch", 3)]),
    ],
)
def test_the_graph_computes_the_same(graphs, model, blocks):
    inputs, graph = graphs[model]
    plan = planned(graph, in_pieces(*blocks), 1)
    assert sum(operator.is_piece for operator in plan.graph.operators) > 8
    assert_same(graph, plan.graph, inputs)


def number_of(operator):
    return int(re.search(r"/piece(\d+)", operator.name)[1])


@pytest.mark.parametrize("pattern", ["h.0.attn", "h.0.mlp"])
def test_one_piece_ends_before_the_next_begins(graphs, pattern):
    graph = planned(graphs["gpt"][1], in_pieces((pattern, None, 4)), 1).graph
    for phase in (Phase.FORWARD, Phase.BACKWARD):
        pieces = [
            o for o in graph.operators if o.phase is phase and o.is_piece and not o.name.endswith("/parted")
        ]
        numbers = [number_of(operator) for operator in pieces]
        assert numbers == sorted(numbers)
        assert {*numbers} == {0, 1, 2, 3}


def test_the_backward_reads_nothing_of_the_forwards_pieces(graphs):
    graph = planned(graphs["gpt"][1], in_pieces(("h.0", None, 2)), 1).graph
    made = {n for o in graph.operators if o.phase is Phase.FORWARD and o.is_piece for n in o.writes}
    read = {n for o in graph.operators if o.phase is Phase.BACKWARD for n in o.reads}
    assert made
    assert not made & read


def test_gradients_of_queries_keys_and_values_are_added_up_once(graphs):
    """Per piece to one summand of the block's input, and these piece by piece: nothing else is summed."""
    graph = planned(graphs["gpt"][1], in_pieces(("h.0.attn", "heads", 2)), 1).graph
    sums = [o for o in graph.operators if "/sum" in o.name and o.phase is Phase.BACKWARD]
    assert [o.writes for o in sums] == [("h.0.attn.q/add",)]


@pytest.mark.parametrize(
    "how", ["tp=2", "dp=2,tp=2,micro_batches=2", "tp=2,sp", "dp=2,zero=1", "pp=2,micro_batches=2"]
)
def test_nothing_more_is_communicated(how):
    graph = tiny_gpt()[2]
    before, after = (format_communication(planned(graph, plan)) for plan in (how, f"{how},co_shard=2"))
    assert before == after


def test_devices_cut_the_heads_and_run_their_own_in_pieces():
    plan = planned(tiny_gpt()[2], "tp=2,co_shard=2")
    attention = plan.graph.operator("h.0.attn/attention/piece1")
    heads = plan.placed.axes.letters[attention.name]["heads"]
    assert [axis.size for axis in heads] == [2]
    assert plan.placed.writes(attention)[0].cuts[1] == ("tp",)
    assert "one of 2 pieces by co_shard=2 in the plan 'tp=2,co_shard=2'" in plan.explain(attention)
    assert "run piece after piece" in format_plan(plan)


def test_a_script_speaks_of_axes_as_before(graphs):
    """It runs again on the graph of pieces, where an axis that it cuts is one of three."""

    def script(p):
        p.assign(p.everything(), p.mesh(range(2), tp=2))
        p.trans(p.axis("heads"), "tp")
        p.trans(p.select("h.*.mlp.up").axis("out"), "tp")
        p.co_shard(p.select("h.0.attn"), "heads", pieces=2)
        p.co_shard(p.select("h.0.mlp"), p.select("h.0.mlp.up").axis("out"), pieces=4)
        p.recompute(p.select("h.0"))
        p.order(p.select("h.0.attn/attention"), p.select("h.0.mlp/gelu"))

    graph = planned(tiny_gpt()[2], script, 2).graph
    again = {o.original for o in graph.operators if o.is_again}
    assert "h.0.ln_2/native_layer_norm" in again
    assert "h.0.mlp/gelu/piece3" in again
    assert not any("proj/linear" in name for name in again), "its result is stored"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (in_pieces(("h.0.attn", "heads", 3)), r"heads\(4\) of selection .* in 3 pieces: they would not be equal"),
        (in_pieces(("h.0.attn", "heads", 1)), "in 1 pieces: fewer than two are none"),
        (in_pieces(("h.0.ln_1", None, 2)), "no axis of a weight that it could run on"),
        (in_pieces(("h.0.mlp", "vocab", 2)), "has no axis 'vocab'"),
        (in_pieces(("h.0", "seq", 2)), r"seq\(8\) cannot run .*'h.0.attn/.*needs all pieces, before 'h.0"),
        (in_pieces(("h.0.attn", "heads", 2), ("h.0", "batch", 2)), r"twice: along heads.* and along batch"),
        ("tp=4,co_shard=2", r"heads\(4\) is cut into 4 parts, and cannot run in 2 equal pieces in each"),
        ("co_shard=0", "a number below 1"),
    ],
)  # fmt: skip
def test_what_cannot_run_in_pieces_is_refused_with_the_reason(how, message):
    with pytest.raises(PlanError, match=f"(?s){message}") as error:
        planned(tiny_gpt()[2], how, 1)
    assert error.value.remedy


def test_chosen_uneven_pieces_over_devices_have_no_equal_pieces_in_time():
    def script(p):
        p.assign(p.everything(), p.mesh(range(2), tp=2))
        p.trans(p.axis("heads"), "tp", pieces=(3, 1))
        p.co_shard(p.select("h.0.attn"), "heads", pieces=2)

    with pytest.raises(PlanError, match="cut into 2 parts, and cannot run in 2 equal pieces"):
        planned(tiny_gpt()[2], script, 2)


def modules_of(graph):
    paths = {
        ".".join(o.module.split(".")[: n + 1])
        for o in graph.operators
        for n in range(o.module.count(".") + 1)
    }
    return sorted(path for path in paths if path)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_blocks_axes_and_pieces_compute_the_same_or_are_refused(graphs, data):
    inputs, graph = graphs[data.draw(st.sampled_from(sorted(GRAPHS)))]
    pattern = data.draw(st.sampled_from(modules_of(graph)))
    axes = find_axes(graph)
    block = [
        o for o in graph.operators if o.phase is Phase.FORWARD and f"{o.module}.".startswith(f"{pattern}.")
    ]
    found = {
        a
        for o in block
        for parts in axes.letters[o.name].values()
        for a in parts
        if runs_in_pieces(axes, o, a)
    }
    index = data.draw(st.sampled_from(sorted(axis.index for axis in found)))
    pieces = data.draw(st.integers(2, 4))

    def script(p):
        p.assign(p.everything(), p.mesh([0]))
        wanted = [axis for axis in found if axis.index == index]
        p.co_shard(p.select(pattern), wanted[0], pieces=pieces)

    try:
        plan = planned(graph, script, 1)
    except PlanError:
        return
    assert_same(graph, plan.graph, inputs)
