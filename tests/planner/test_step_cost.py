import pytest

from superscaler.ir.layout import Layout
from superscaler.ir.mesh import TIME, Mesh
from superscaler.planner.cluster import Cluster, Link, Nodes
from superscaler.planner.device import Device
from superscaler.planner.step_cost import local_elements, step_seconds
from superscaler.planner.steps import Step, StepKind, apply

TEXTBOOK = Cluster(
    "textbook", (Nodes(2, 8, Device("", 2**30, (), 1.0), Link(300e9, 5e-6), Link(25e9, 1e-5), 8),)
)
"""Links that reach their bandwidth, and nothing to pay but latency."""
MEGA = 2**20


def seconds(kind, before, axis="", dim=-1, target=None):
    after = apply(kind, before, axis, dim, target=target)
    assert after is not None
    return step_seconds(Step(kind, before, after, axis, dim), 4, TEXTBOOK)


def test_collectives_cost_what_a_ring_moves():
    mesh = Mesh((0, 1, 2, 3), (("tp", 4),))
    partial, cut = Layout(mesh, (MEGA,), ((),), ("tp",)), Layout(mesh, (MEGA,), (("tp",),))
    moved = 4 * MEGA * 3 / 4 / 300e9
    assert seconds(StepKind.REDUCE_SCATTER, partial, "tp", 0) == pytest.approx(3 * 5e-6 + moved, rel=1e-3)
    assert seconds(StepKind.ALL_GATHER, cut, "tp", 0) == pytest.approx(3 * 5e-6 + moved, rel=1e-3)
    assert seconds(StepKind.ALL_REDUCE, partial, "tp") == pytest.approx(6 * 5e-6 + 2 * moved, rel=1e-3)


def test_a_group_across_nodes_is_bound_by_the_network():
    mesh = Mesh(tuple(range(16)), (("dp", 2), ("tp", 8)))
    partial = Layout(mesh, (16 * MEGA,), ((),), ("dp", "tp"))
    across = seconds(StepKind.ALL_REDUCE, partial, "dp")
    assert across == pytest.approx(2 * 1e-5 + 2 * 4 * 16 * MEGA / 2 / 25e9, rel=1e-3)
    assert seconds(StepKind.ALL_REDUCE, partial, "tp") < across


def test_a_step_inside_micro_batches_runs_once_for_each():
    once, often = Mesh((0, 1), (("tp", 2),)), Mesh((0, 1), (("tp", 2),), 4)
    whole = seconds(StepKind.ALL_REDUCE, Layout(once, (MEGA,), ((),), ("tp",)), "tp")
    summed = seconds(StepKind.ALL_REDUCE, Layout(often, (MEGA,), ((),), (TIME, "tp")), "tp")
    assert summed == pytest.approx(4 * whole, rel=1e-3)


def test_local_steps_cost_next_to_nothing():
    layout = Layout(Mesh((0, 1), (("tp", 2),)), (MEGA,), ((),))
    assert 0 < seconds(StepKind.SLICE, layout, "tp", 0) < 1e-8
    assert 0 < seconds(StepKind.MASK, layout, "tp") < 1e-8


def test_an_exchange_in_which_nothing_moves_costs_its_latency_only():
    before = Layout(Mesh((0, 1, 2, 3), (("dp", 4),)), (MEGA,), ((),))
    after = Layout(Mesh((0, 1, 2, 3), (("dp", 2), ("tp", 2))), (MEGA,), (("dp", "tp"),))
    assert seconds(StepKind.EXCHANGE, before, target=after) < 1e-4
    elsewhere = Layout(Mesh((8, 9), (("dp", 2),)), (MEGA,), ((),))
    assert seconds(StepKind.EXCHANGE, before, target=elsewhere) > 4 * MEGA / 25e9


def test_the_largest_piece_counts():
    assert local_elements(Layout(Mesh((0, 1), (("tp", 2),)), (7, 3), (("tp",), ()))) == 12
    assert local_elements(Layout(Mesh((0, 1), (("tp", 2),)), (7,), (("tp",),), pieces=((2, 5),))) == 5
