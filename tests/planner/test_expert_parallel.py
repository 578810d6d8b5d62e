"""Experts cut over the devices that samples are cut over: equal to eager, and tokens travel twice each way."""

from functools import cache

import pytest
import torch

from models import moe
from superscaler import compiler
from superscaler.errors import PlanError
from superscaler.ir.axes import find_axes
from superscaler.ir.optimizers import AdamW
from superscaler.ir.tensor import Role
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import parse_plan
from superscaler.planner.steps import StepKind
from tests.planner.samples import gpt_graph, plan_of


@cache
def traced():
    torch.manual_seed(0)
    model, inputs = moe.build("tiny").double(), moe.example_inputs("tiny", batch=8)
    return model, inputs, trace(model, inputs, optimizer=AdamW(eps=1e-5))


@pytest.mark.parametrize(
    "text",
    [
        "ep=2",
        "ep=3",
        "ep=4,dp=2",
        "ep=2,tp=2",
        "ep=2,cp=2",
        "ep=2,dp=2,zero=1",
        "ep=2,dp=2,zero=3",
        "ep=2,pp=2,micro_batches=2",
        "ep=2,recompute",
    ],
)
def test_plans_equal_eager(text):
    model, inputs, graph = traced()
    plan = compiler.plan(graph, Cluster.local(parse_plan(text).num_devices), text).verify()
    assert plan.compare_with_eager(model, inputs, steps=2).largest < 1e-11


def test_tokens_go_to_their_experts_and_back_and_so_do_their_gradients():
    plan = plan_of(traced()[2], "ep=2,dp=2")
    movements = [m for m in plan.communication() if m.kind is StepKind.ALL_TO_ALL]
    room = 16 * 2 // 4 * 5 // 4  # sequence, choices over experts, and a quarter more
    local = 8 // 4 * 4 * room * 32 * 8  # [batch, experts, room, width] float64
    assert [(m.axis, m.times, m.most_bytes) for m in movements] == [("ep", 1, local // 2)] * 4 * 2
    assert [m.phase for m in movements] == ["F"] * 4 + ["B"] * 4


def test_each_device_stores_its_own_experts_and_their_gradients_are_summed_over_data_parallel_devices_alone():
    plan = plan_of(traced()[2], "ep=2,dp=2")
    values = plan.materialized.values
    stacked = {t.name for t in plan.graph.of_role(Role.PARAMETER) if len(t.shape) == 3}
    homes = [
        values[name] for name in plan.materialized.stored if values[name].tensor.split("/")[0] in stacked
    ]
    assert len(homes) == 3 * len(stacked) == 18, "weights and two moments"
    assert all(home.layout.cuts[0] == ("ep",) for home in homes)
    sums = [m for m in plan.communication() if m.tensor in {plan.graph.gradients[name] for name in stacked}]
    assert [m.axis for m in sums] == ["dp"] * 6


def test_the_axis_that_counts_experts_is_called_so():
    names = {axis.name for axis in find_axes(traced()[2]).fine("layers.0.experts.gate")}
    assert "experts" in names


def test_a_model_without_experts_is_refused():
    with pytest.raises(PlanError, match="no experts to cut over 'ep'") as error:
        plan_of(gpt_graph(), "ep=2")
    assert error.value.where == "ep=2 in the plan 'ep=2'"
