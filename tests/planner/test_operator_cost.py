"""Operators: never beyond the roofline, near it where large, and neighbours in one kernel hand on for free."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import mlp
from superscaler.ir.kinds import KINDS
from superscaler.ir.optimizers import SGD
from superscaler.ir.trace import trace
from superscaler.planner.arithmetic import arithmetic
from superscaler.planner.cluster import Cluster
from superscaler.planner.cluster_presets import A100_80GB, PRESETS
from superscaler.planner.efficiency import OperatorClass
from superscaler.planner.operator_class import CLASS_OF_KIND
from superscaler.planner.operator_cost import operator_seconds
from superscaler.planner.operator_work import PlacedWork
from superscaler.planner.plan import make_plan
from superscaler.planner.prices import Prices
from tests.codegen.plans import planned, tiny_gpt

DEVICES = [group.device for preset in PRESETS.values() for group in preset.nodes]
devices, classes = st.sampled_from(DEVICES), st.sampled_from(list(OperatorClass))
amounts = st.floats(0, 1e15)


@given(devices, classes, amounts, amounts)
def test_no_operator_beats_the_peaks(device, operator_class, flops, num_bytes):
    seconds = operator_seconds(operator_class, flops, num_bytes, "bfloat16", device)
    assert seconds >= flops / device.flops("bfloat16")
    assert seconds >= num_bytes / device.memory_bandwidth


@given(devices, classes, st.tuples(amounts, amounts), st.tuples(amounts, amounts))
def test_more_work_is_never_faster(device, operator_class, one, other):
    less, more = (
        operator_seconds(operator_class, *map(pick, one, other), "bfloat16", device) for pick in (min, max)
    )
    assert less <= more


def test_large_products_reach_what_training_sustains_of_what_is_published_and_small_ones_do_not():
    def teraflops(size):
        flops, num_bytes = 2 * size**3, 3 * size**2 * 2
        return flops / operator_seconds(OperatorClass.MATMUL, flops, num_bytes, "float16", A100_80GB) / 1e12

    assert 200 < teraflops(16384) < 255  # the latter by cuBLAS alone, on a cold device
    assert teraflops(512) < 312 / 10
    assert sorted(map(teraflops, (512, 1024, 4096))) == [*map(teraflops, (512, 1024, 4096))]


def test_work_point_by_point_takes_its_bytes():
    num_bytes = 1e9
    seconds = operator_seconds(OperatorClass.POINTWISE, num_bytes / 4, num_bytes, "bfloat16", A100_80GB)
    assert num_bytes / 2039e9 < seconds < 1.2 * num_bytes / 2039e9


def test_every_kind_of_a_class_has_a_row():
    assert CLASS_OF_KIND.keys() <= KINDS.keys()


def test_a_causal_attention_does_half_of_its_scores():
    plan = planned(tiny_gpt()[2], "none")
    placed = plan.materialized.placed
    prices = Prices(placed, plan.cluster)
    attention = next(operator for operator in placed.graph.operators if operator.kind == "attention")
    assert prices.work(attention.name).flops == pytest.approx(arithmetic(placed.axes, attention) / 2)
    backward = next(operator for operator in placed.graph.operators if operator.kind == "attention_backward")
    assert prices.work(backward.name).flops == pytest.approx(2.5 * prices.work(attention.name).flops)


def test_an_embedding_reads_the_rows_it_picks():
    plan = planned(tiny_gpt()[2], "none")
    placed = plan.materialized.placed
    prices = Prices(placed, plan.cluster)
    one = next(operator for operator in placed.graph.operators if operator.kind == "embedding")
    table, indices, out = (placed.graph.tensors[name] for name in (*one.reads, *one.writes))
    picked = min(table.num_bytes, out.num_bytes)
    assert prices.work(one.name).num_bytes == picked + indices.num_bytes + out.num_bytes


def test_neighbours_in_one_kernel_hand_on_for_free():
    plan = planned(tiny_gpt()[2], "none")
    apart, fused = (Prices(plan.materialized.placed, plan.cluster, is_fused) for is_fused in (False, True))
    gained = {
        operator.kind
        for operator in plan.graph.operators
        if fused.operator(operator.name) < apart.operator(operator.name)
    }
    assert gained
    assert not {
        kind for kind in gained if CLASS_OF_KIND.get(kind) in (OperatorClass.MATMUL, OperatorClass.ATTENTION)
    }
    assert all(fused.operator(one.name) <= apart.operator(one.name) for one in plan.graph.operators)


def test_devices_of_several_kinds_take_as_long_as_the_slowest():
    graph = trace(mlp.build("tiny"), mlp.example_inputs("tiny"), optimizer=SGD())
    fast, slow = Cluster.preset("dgx-h100"), Cluster.preset("dgx-1-v100")
    mixed = Cluster("mixed", (*fast.nodes, *slow.nodes), fast.transport)

    def seconds(*devices):
        plan = make_plan(graph, mixed, lambda p: p.assign(p.everything(), p.mesh(devices, dp=2)), "")
        prices = Prices(plan.materialized.placed, mixed)
        return [prices.operator(operator.name) for operator in graph.operators]

    assert seconds(0, 8) == [*map(max, seconds(0, 1), seconds(8, 9))]
    assert seconds(0, 1) != seconds(8, 9)
    assert mixed.memory_of((0, 1)) > mixed.memory_of((0, 8)) == mixed.memory_bytes == slow.memory_bytes


def test_host_memory_is_as_far_as_its_bus():
    plan = planned(tiny_gpt()[2], "none")
    placed = plan.materialized.placed
    operator = next(operator for operator in placed.graph.operators if operator.kind == "adamw")
    (layout, *_), tensor = placed.writes(operator), placed.graph.tensors[operator.writes[0]]
    prices = Prices(placed, Cluster.preset("dgx-1-v100"))
    assert prices.host_copy(tensor.name, layout) == pytest.approx(4.5e-6 + tensor.num_bytes / 12e9)


def test_an_attention_that_stores_its_scores_moves_them_and_computes_those_a_mask_hides():
    plan = planned(tiny_gpt()[2], "tp=2")
    placed = plan.materialized.placed
    kept = PlacedWork(placed, stores_scores=True)
    for kind, passes in (("attention", 4), ("attention_backward", 7)):
        one = next(operator for operator in placed.graph.operators if operator.kind == kind)
        whole, parts = kept.of(one.name), kept.parts(one.name)
        batch, heads, seq, _ = placed.graph.tensors[one.writes[0]].shape
        scores = batch * heads // 2 * seq * seq * 8
        assert sum(part.num_bytes for part in parts) == whole.num_bytes + passes * scores
        assert parts[0].flops == 2 * whole.flops
    others = (operator.name for operator in placed.graph.operators if "attention" not in operator.kind)
    assert all(kept.parts(name) == (kept.of(name),) for name in others)
