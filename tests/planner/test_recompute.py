"""What runs again gives the same numbers, bit for bit, in less memory, where it is needed and not earlier."""

import pytest
import torch

from superscaler import compiler
from superscaler.codegen.memory import peak_memory
from superscaler.errors import PlanError
from superscaler.ir.axes import find_axes
from superscaler.ir.graph import AGAIN, Phase
from superscaler.ir.interpret import interpret
from superscaler.ir.tensor import Role
from superscaler.ir.trace import trace
from superscaler.ir.verify import verify_graph
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import tensor_parallel
from superscaler.planner.recompute import operators_to_repeat, recompute
from superscaler.planner.show import format_plan
from tests.codegen.plans import planned, tiny_gpt


def layer_path(module):
    return ".".join(module.split(".")[:2]) if module.startswith("h.") else ""


def layers_of(graph):
    blocks = {}
    for operator in graph.operators:
        if operator.phase is Phase.FORWARD and layer_path(operator.module):
            blocks.setdefault(layer_path(operator.module), {})[operator.name] = None
    return list(blocks.values())


def test_the_graph_computes_the_same_with_dropout():
    _, inputs, graph = tiny_gpt(dropout=0.2)
    again = recompute(graph, layers_of(graph))
    verify_graph(again)
    states = {t.name: torch.zeros(t.shape, dtype=torch.float64) for t in graph.of_role(Role.STATE)}
    values = {**graph.values, **inputs, **states, "step": 3}
    ours, theirs = interpret(again, values), interpret(graph, values)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_backward_reads_nothing_that_was_made_inside_a_layer():
    graph = tiny_gpt(layers=3)[2]
    blocks = layers_of(graph)
    again = recompute(graph, blocks)
    for block in blocks:
        made = {name for operator in block for name in graph.by_name[operator].writes}
        stored = {
            name
            for operator in again.operators
            if operator.phase is Phase.BACKWARD
            for name in operator.reads
            if name in made
        }
        leaves = {
            name
            for name in made
            if any(o.phase is Phase.FORWARD and o.name not in block for o in graph.readers[name])
        }
        assert stored == leaves
        assert len(leaves) == 1


def test_copies_stand_just_before_the_first_operator_that_reads_them():
    again = recompute(tiny_gpt()[2], layers_of(tiny_gpt()[2]))
    position = {operator.name: i for i, operator in enumerate(again.operators)}
    for layer in ("h.0", "h.1"):
        copies = [o for o in again.operators if o.is_again and layer_path(o.module) == layer]
        first, last = position[copies[0].name], position[copies[-1].name]
        assert last - first + 1 == len(copies)
        reader = again.operators[last + 1]
        assert any(name.endswith(AGAIN) for name in reader.reads)
    of_first = [position[o.name] for o in again.operators if o.is_again and o.module.startswith("h.0")]
    assert position["h.1.attn.q/linear_weight_gradient"] < min(of_first)


def test_what_nobody_needs_is_not_repeated():
    graph = tiny_gpt()[2]
    repeated = {operator.name for operator in operators_to_repeat(graph, layers_of(graph)[0])}
    assert "h.0.mlp/gelu" in repeated
    assert "h.0.mlp.down/linear" not in repeated


def test_what_is_stored_inside_a_block_is_not_repeated_and_all_computes_the_same():
    _, inputs, graph = tiny_gpt(dropout=0.2)
    stored = {
        name for block in layers_of(graph) for name in block if name.endswith(("attention", "up/linear"))
    }
    again = recompute(graph, layers_of(graph), stored)
    verify_graph(again)
    copies = {operator.original for operator in again.operators if operator.is_again}
    assert {f"{layer}.{name}" for layer in ("h.0", "h.1") for name in ("attn.q/linear", "mlp/gelu")} <= copies
    assert stored
    assert not stored & copies
    states = {t.name: torch.zeros(t.shape, dtype=torch.float64) for t in graph.of_role(Role.STATE)}
    values = {**graph.values, **inputs, **states, "step": 3}
    ours, theirs = interpret(again, values), interpret(graph, values)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_plan_whose_layers_store_some_results_is_proved_and_keeps_less_than_all_and_more_than_none():
    def storing(*patterns):
        def script(p):
            p.assign(p.everything(), p.mesh(p.cluster.devices, tp=2))
            tensor_parallel(p)
            for layer in ("h.0", "h.1"):
                kept = [operator for pattern in patterns for operator in p.select(f"{layer}.{pattern}")]
                p.recompute(p.select(layer), storing=kept)

        return script

    model, inputs, graph = tiny_gpt()
    plans = [
        compiler.plan(graph, Cluster.local(2), how).verify()
        for how in (storing(), storing("mlp.up", "attn.q"), "tp=2")
    ]
    kept = [peak_memory(plan.programs[0]).total for plan in plans]
    assert kept == sorted(set(kept))
    assert plans[1].compare_with_eager(model, inputs).largest < 1e-12


@pytest.mark.parametrize(
    "how", ["none", "tp=2", "dp=2,tp=2,micro_batches=2", "tp=2,sp,pp=2,micro_batches=4", "dp=2,zero=1"]
)
def test_copies_are_placed_and_cut_like_what_they_repeat(how):
    plan = planned(tiny_gpt()[2], f"{how},recompute")
    copies = [operator for operator in plan.graph.operators if operator.is_again]
    assert copies
    for operator in copies:
        assert plan.placed.placements[operator.name] == plan.placed.placements[operator.original]
        assert plan.placed.phases[operator.name] is Phase.BACKWARD
        assert f"it repeats {operator.original!r}" in plan.explain(operator)


def test_axes_do_not_depend_on_what_is_repeated():
    graph = tiny_gpt()[2]
    before, after = find_axes(graph), find_axes(recompute(graph, layers_of(graph)))
    for name in graph.tensors:
        assert [[a.size for a in dim] for dim in before.dims[name]] == [
            [a.size for a in dim] for dim in after.dims[name]
        ]


def test_blocks_that_overlap_or_store_nothing_are_refused():
    def twice(p):
        p.assign(p.everything(), p.mesh([0]))
        p.recompute(p.select("h.0"))
        p.recompute(p.select("h.0.mlp"))

    def nothing(p):
        p.assign(p.everything(), p.mesh([0]))
        p.recompute(p.select("h.0.mlp.down"))

    graph = tiny_gpt()[2]
    with pytest.raises(PlanError, match=r"(?s)overlaps another block.*'h.0.mlp.*test_recompute.py"):
        planned(graph, twice, 1)
    with pytest.raises(PlanError, match="stores nothing for a backward"):
        planned(graph, nothing, 1)
    model, inputs, _ = tiny_gpt()
    with pytest.raises(PlanError, match="no layers that store anything"):
        planned(trace(model, inputs), "recompute")


def test_the_plan_says_how_much_runs_again():
    plan = planned(tiny_gpt()[2], "recompute")
    count = sum(operator.is_again for operator in plan.graph.operators)
    assert f"{count} of the backward repeat the forward" in format_plan(plan)
