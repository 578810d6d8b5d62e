"""Completion gives every operator a place, cuts and a reason, and ignores nothing that was said."""

import pytest
import torch
from torch import nn

from superscaler.errors import PlanError
from superscaler.ir.graph import Phase
from superscaler.ir.optimizers import SGD
from superscaler.ir.trace import trace
from superscaler.planner import schedules
from superscaler.planner.recipes import data_parallel, tensor_parallel
from tests.planner.samples import gpt_graph, mlp_graph, plan_of, script_plan


def cuts(plan, operator):
    """Axis name -> mesh axes, for one operator."""
    placed = plan.placed
    letters = placed.axes.letters[operator]
    return {
        next(axis.name for axis in letters[letter] if axis.index == index): names
        for (letter, index), names in placed.placements[operator].cuts
    }


def test_backward_and_update_go_with_their_forward():
    plan = plan_of(gpt_graph(layers=4), "pp=4")
    placed = plan.placed
    stage = {
        operator.name: placed.placements[operator.name].mesh.devices[0] for operator in plan.graph.operators
    }
    for operator in plan.graph.operators:
        if operator.module.startswith("h."):
            assert stage[operator.name] == int(operator.module.split(".")[1]), operator.name
    assert {stage[operator.name] for operator in plan.graph.operators if operator.module == "wpe"} == {0}
    assert {stage[operator.name] for operator in plan.graph.operators if operator.module == "ln_f"} == {3}
    assert stage[plan.graph.writer[plan.graph.outputs[0]].name] == 3
    assert stage["wte.weight/adamw"] == 0


def test_stages_are_in_order_of_the_forward_pass_however_they_were_assigned():
    def script(p):
        p.assign(p.select("h.1"), [0])
        p.assign(p.select("h.0"), [1])

    plan = script_plan(gpt_graph(), 2, script)
    assert [mesh.devices for mesh in plan.materialized.stages] == [(1,), (0,)]
    places = plan.placed.placements
    assert places["wte/embedding"].mesh.devices == (1,), "with the layer that reads it"
    assert places["ln_f/native_layer_norm"].mesh.devices == (0,)


def test_an_operator_apart_from_all_others_goes_with_its_module():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(4)
            self.out = nn.Linear(4, 1)

        def forward(self, x):
            return self.out(self.norm(x)).sum()

    def script(p):
        p.assign(p.select("norm/batch_norm"), [0])
        p.assign(p.select("out"), [1])

    plan = script_plan(trace(Counting(), {"x": torch.zeros(4, 4)}, optimizer=SGD()), 2, script)
    counter = plan.graph.updates["norm.num_batches_tracked"]
    assert plan.placed.placements[counter].mesh.devices == (0,)
    assert any("its module is that of" in reason for reason in plan.placed.reasons[counter])


def test_a_cut_axis_is_cut_in_forward_backward_and_update():
    def script(p):
        p.assign(p.everything(), p.mesh([0, 1], tp=2))
        p.trans(p.select("up").axis("up.out"), "tp")

    plan = script_plan(mlp_graph(), 2, script)
    where = {
        operator.name for operator in plan.graph.operators if cuts(plan, operator.name) == {"up.out": ("tp",)}
    }
    phases = {plan.graph.by_name[name].phase for name in where}
    assert phases == {"F", "B", "U"}
    assert {"up/linear", "down/linear", "up.weight/adamw", "down.weight/adamw"} <= where
    assert "down.bias/adamw" not in where


def test_micro_batches_are_cut_outside_the_devices():
    plan = plan_of(gpt_graph(), "dp=2,micro_batches=2")
    assert cuts(plan, "h.0.mlp.up/linear") == {"batch": ("mb", "dp")}
    layout = plan.placed.writes(plan.graph.by_name["h.0.mlp.up/linear"])[0]
    first = layout.region({"dp": 1, "mb": 0}).intervals[0]
    assert first == (2, 4), "the second half of the first micro-batch"


@pytest.mark.parametrize("text", ["none", "dp=2,tp=2,pp=2,zero=1,sp,micro_batches=2"])
def test_every_operator_has_a_reason(text):
    plan = plan_of(gpt_graph(), text)
    for operator in plan.graph.operators:
        reasons = plan.placed.reasons[operator.name]
        assert any(reason.startswith("placed on") for reason in reasons), operator.name
        assert f"writes {operator.writes[0]} as R" in plan.explain(operator.name)
        for names in cuts(plan, operator.name).values():
            for name in names:
                said = [reason for reason in reasons if f"over {name} by " in reason]
                assert name == "mb" or any(repr(text) in reason for reason in said), operator.name


def test_an_axis_only_some_meshes_have_cuts_there_and_is_explained_elsewhere():
    def script(p):
        p.assign(p.select("h.0"), p.mesh([0, 1], dp=2))
        p.assign(p.select("h.1"), p.mesh([2, 3], tp=2))
        data_parallel(p)
        tensor_parallel(p)

    plan = script_plan(gpt_graph(), 4, script)
    assert cuts(plan, "h.0.mlp.up/linear") == {"batch": ("dp",)}
    assert cuts(plan, "h.1.mlp.up/linear") == {"h.1.mlp.up.out": ("tp",)}
    assert "have no mesh axis 'dp'" in plan.explain("h.1.mlp.up/linear")


def test_an_operator_within_which_nothing_was_cut_is_not_said_to_need_it_whole():
    def script(p):
        p.assign(p.everything(), p.mesh([0, 1], x=2))
        p.trans(p.axis("batch"), "x", within=p.select("h.1"))

    plan = script_plan(gpt_graph(), 2, script)
    assert "needs it whole" not in plan.explain("h.1.mlp.up.weight/adamw")
    assert cuts(plan, "h.1.mlp.up/linear") == {"batch": ("x",)}
    assert cuts(plan, "h.0.mlp.up/linear") == {}


def test_saying_the_same_twice_is_saying_it_once():
    def script(p):
        p.assign(p.everything(), p.mesh([0, 1], x=2))
        p.trans(p.axis("batch"), "x")
        p.trans(p.axis("batch"), "x")

    assert cuts(script_plan(mlp_graph(), 2, script), "up/linear") == {"batch": ("x",)}


REFUSED = {
    "is no mesh axis of this plan": lambda p: p.trans(p.axis("up.out"), "tp"),
    "would be cut twice over 'x': along up.out": lambda p: (
        p.trans(p.axis("up.out"), "x"),
        p.trans(p.axis("batch"), "x"),
    ),
    "into different pieces": lambda p: (
        p.trans(p.axis("up.out"), "x", pieces=(12, 8)),
        p.trans(p.axis("up.out"), "x"),
    ),
    "cannot be cut over 'tp': its devices are": lambda p: p.trans(p.select("up", "F"), "tp", letter="n"),
    "changes nothing": lambda p: p.trans(p.axis("up.out"), "x", within=p.select("down.bias/adamw")),
    r"\[5, 5, 10\] are 3 pieces of up.out": lambda p: p.trans(p.axis("up.out"), "x", pieces=(5, 5, 10)),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_what_cannot_be_is_refused_at_the_line_that_said_it(fault):
    def script(p):
        p.assign(p.everything(), p.mesh([0, 1], x=2))
        REFUSED[fault](p)

    with pytest.raises(PlanError, match=fault) as error:
        script_plan(mlp_graph(), 2, script)
    assert "test_complete.py:" in error.value.where
    assert error.value.remedy


def test_no_mesh_axis_of_that_name_says_which_there_are():
    def script(p):
        p.assign(p.everything(), p.mesh(range(4), dp=2, pair=2))
        p.trans(p.axis("batch"), "tp")

    with pytest.raises(PlanError) as error:
        script_plan(mlp_graph(), 4, script)
    assert "dp, pair" in error.value.remedy


def test_chosen_pieces_of_the_batch_do_not_go_with_micro_batches():
    def script(p):
        p.assign(p.everything(), p.mesh([0, 1], x=2))
        p.trans(p.axis("batch"), "x", pieces=(5, 3))
        p.order(schedules.gpipe(2))

    with pytest.raises(PlanError, match=r"2 pieces of batch\(8\), which .* cuts into 4, over mb"):
        script_plan(mlp_graph(), 2, script)


def test_summands_of_the_residual_stream_are_added_before_they_are_reduced():
    plan = plan_of(gpt_graph(), "tp=2")
    adds = [
        operator
        for operator in plan.graph.operators
        if operator.phase is Phase.BACKWARD and plan.placed.placements[operator.name].values == ("tp",)
    ]
    assert len(adds) == 2 * 2, "the gradients of q, k and v, per layer"
    assert all("passes summands over tp on" in plan.explain(operator.name) for operator in adds)
