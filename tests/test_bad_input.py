"""What a user can get wrong, and what they are told: what is wrong, on which line, and what to do."""

import re

import pytest
import torch
from torch import nn

from models import gpt
from superscaler.errors import PlanError, SuperscalerError, TraceError
from superscaler.ir.optimizers import SGD
from superscaler.ir.trace import trace
from superscaler.planner import schedules
from superscaler.planner.cluster import Cluster
from superscaler.planner.plan import make_plan
from superscaler.planner.recipes import recipe, words
from superscaler.planner.schedules import Task

HERE = r"\S*test_bad_input\.py:\d+"


@pytest.fixture(scope="module")
def graph():
    sizes = {"layers": 2, "width": 16, "seq": 8, "vocab": 32}
    return trace(gpt.build("tiny", **sizes), gpt.example_inputs("tiny", batch=4, **sizes), optimizer=SGD())


def told(kind: type[SuperscalerError], function, *args) -> tuple[str, str, str]:
    """The three parts of the message `function` ends with, all of which are there."""
    with pytest.raises(kind) as error:
        function(*args)
    what, where, remedy = error.value.what, error.value.where, error.value.remedy
    assert str(error.value) == what + (f"\n  at: {where}" if where else "") + f"\n  remedy: {remedy}"
    assert remedy
    return what, where, remedy


def plan(graph, script, devices=2):
    return make_plan(graph, Cluster.local(devices), script, "script")


def on_two(decide):
    """A script that places everything on two devices, then decides something."""

    def script(p):
        p.assign(p.everything(), p.mesh([0, 1], tp=2))
        decide(p)

    return script


def test_a_plan_string_for_another_number_of_devices(graph):
    what, _, remedy = told(PlanError, plan, graph, recipe("dp=2,tp=2"), 6)
    assert "'dp=2,tp=2' needs 4 devices (dp 2 x tp 2)" in what
    assert "'local' has 6" in what
    assert "--cluster local:4" in remedy
    assert "x tp x pp is 6" in remedy


def test_an_unknown_word_in_a_plan_string():
    what, _, remedy = told(PlanError, recipe, "dp=2,fsdp=2")
    assert "'dp=2,fsdp=2'" in what
    assert "'fsdp=2'" in what
    assert set(words()) <= set(remedy.removeprefix("words are ").split(", "))


def test_a_letter_the_operator_needs_whole(graph):
    what, where, remedy = told(
        PlanError, plan, graph, on_two(lambda p: p.trans(p.select("h.0.ln_1", "F"), "tp", letter="d0"))
    )
    assert "'h.0.ln_1/native_layer_norm' (aten.native_layer_norm) cannot be cut along 'd0'" in what
    assert re.fullmatch(HERE, where)
    assert "b0, b1" in remedy


def test_an_axis_every_operator_needs_whole():
    class Softmax(nn.Module):
        def forward(self, x):
            return torch.softmax(x, -1)

    softmax = trace(Softmax(), {"x": torch.zeros(4, 6)})
    what, where, _ = told(PlanError, plan, softmax, on_two(lambda p: p.trans(p.axis("seq"), "tp")))
    assert "seq(6) cannot be cut: every operator it runs through needs it whole" in what
    assert re.fullmatch(HERE, where)


def test_more_pieces_than_elements(graph):
    what, where, remedy = told(PlanError, plan, graph, recipe("tp=8"), 8)
    assert "'h.0.attn.q/linear' cannot be cut into 8 pieces along heads(4), over tp (8)" in what
    assert where == "tp=8 in the plan 'tp=8'"
    assert "at most 4 pieces" in remedy


def test_an_operator_left_unplaced():
    class Towers(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.middle, self.right = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            return self.left(x), self.middle(x), self.right(x)

    def script(p):
        p.assign(p.select("left"), [0])
        p.assign(p.select("right"), [1])

    towers = trace(Towers(), {"x": torch.zeros(4, 4)})
    what, where, remedy = told(PlanError, plan, towers, script)
    assert "'middle/linear' is not placed" in what
    assert re.fullmatch(HERE, where), "the model's line"
    assert "p.assign(p.select('middle'), devices)" in remedy


def test_orders_of_operators_that_contradict_each_other(graph):
    def script(p):
        p.assign(p.everything(), [0])
        q, v = p.select("h.0.attn.q/linear"), p.select("h.0.attn.v/linear")
        p.order(q, v)
        p.order(v, q)

    what, where, remedy = told(PlanError, plan, graph, script)
    assert "'h.0.attn.q/linear' before 'h.0.attn.v/linear'" in what or "'h.0.attn.v/linear' before" in what
    assert re.fullmatch(f"{HERE}, {HERE}", where)
    assert "drop one" in remedy


def test_an_order_against_the_data(graph):
    def script(p):
        p.assign(p.everything(), [0])
        p.order(p.select("h.1", "F"), p.select("h.0", "F"))

    what, where, _ = told(PlanError, plan, graph, script)
    assert "the orders contradict each other or the data" in what
    assert re.fullmatch(HERE, where)


def test_an_order_against_the_phases(graph):
    def script(p):
        p.assign(p.everything(), [0])
        p.order(p.select("h.1", "B"), p.select("h.0", "F"))

    what, where, remedy = told(PlanError, plan, graph, script)
    assert "in phase B, after 'h.0" in what
    assert re.fullmatch(HERE, where)
    assert 'only("F")' in remedy


def test_an_order_of_operators_on_different_devices(graph):
    def script(p):
        p.assign(p.select("h.0"), [0])
        p.assign(p.select("h.1"), [1])
        p.order(p.select("h.0", "F"), p.select("h.1", "F"))

    what, where, _ = told(PlanError, plan, graph, script)
    assert "share no device" in what
    assert re.fullmatch(HERE, where)


def test_orders_of_tasks_that_contradict_each_other(graph):
    def script(p):
        p.assign(p.everything(), [0])
        p.order(schedules.gpipe(2))
        p.order(Task(0, "F", 1), Task(0, "F", 0))
        p.order(Task(0, "F", 0), Task(0, "F", 1))

    what, where, remedy = told(PlanError, plan, graph, script)
    assert "stage 0's tasks contradict each other" in what
    assert "F1 before F0" in what
    assert re.fullmatch(f"{HERE}, {HERE}", where)
    assert "drop one" in remedy


def test_a_schedule_that_leaves_out_a_stages_task(graph):
    def script(p):
        p.assign(p.select("h.0"), [0])
        p.assign(p.select("h.1"), [1])
        p.order(schedules.parse_schedule("stage 0: F0 F1 B0 B1\nstage 1: F0 B0 B1"))

    what, where, remedy = told(PlanError, plan, graph, script)
    assert "stage 1 leaves out F1" in what
    assert "stage 0: F0 F1 B0 B1" in what
    assert re.fullmatch(HERE, where)
    assert "each F and B of each micro-batch once" in remedy


def test_control_flow_that_depends_on_data():
    class Branching(nn.Module):
        def forward(self, x):
            if x.sum() > 0:
                return x
            return -x

    what, where, remedy = told(TraceError, trace, Branching(), {"x": torch.zeros(4)})
    assert "Branching decides by the value of a tensor" in what
    assert re.fullmatch(HERE, where)
    assert "torch.where" in remedy


def test_an_operator_without_a_rule():
    library = torch.library.Library("badinput", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    torch.library.register_fake("badinput::twice", torch.empty_like, lib=library)

    class Twice(nn.Module):
        def forward(self, x):
            return torch.ops.badinput.twice(x)

    what, where, remedy = told(TraceError, trace, Twice(), {"x": torch.zeros(4, 4)})
    assert "of a kind without a rule, badinput.twice" in what
    assert "cannot be run on this machine" in what
    assert re.fullmatch(HERE, where)
    assert '@ss.rule("b s d -> b s d")' in remedy


def test_an_operator_that_draws_random_numbers():
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    what, where, remedy = told(TraceError, trace, Noisy(), {"x": torch.zeros(4, 4)})
    assert "'rand_like' of kind aten.rand_like gives other results for the same values" in what
    assert re.fullmatch(HERE, where)
    assert "F.dropout" in remedy


def test_two_axes_of_an_operator_cut_over_one_mesh_axis(graph):
    def decide(p):
        p.trans(p.axis("batch"), "tp")
        p.trans(p.axis("heads"), "tp")

    what, where, remedy = told(PlanError, plan, graph, on_two(decide))
    assert "'h.0.attn.q/linear' would be cut twice over 'tp': along batch(4)" in what
    assert "and along heads(4)" in what
    assert re.search(HERE, what), "the first of the two lines"
    assert re.fullmatch(HERE, where)
    assert "another mesh axis" in remedy


def test_a_mesh_axis_there_is_not(graph):
    what, where, remedy = told(PlanError, plan, graph, on_two(lambda p: p.trans(p.axis("batch"), "dp")))
    assert "batch(4) is to be cut over 'dp', which is no mesh axis" in what
    assert re.fullmatch(HERE, where)
    assert "the mesh axes are tp" in remedy


def test_devices_that_are_not_in_the_cluster(graph):
    what, where, remedy = told(PlanError, plan, graph, lambda p: p.assign(p.everything(), [1, 2]))
    assert "devices [2] are not in the cluster" in what
    assert "0 to 1" in what
    assert re.fullmatch(HERE, where)
    assert "--cluster local:N" in remedy


def test_a_batch_that_does_not_divide_into_micro_batches(graph):
    what, where, remedy = told(PlanError, plan, graph, recipe("pp=2,micro_batches=3"))
    assert "a batch of 4 samples cannot be cut into 3 equal micro-batches" in what
    assert "micro_batches" in where
    assert "divides 4" in remedy


def test_a_layer_that_needs_the_whole_batch():
    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Linear(4, 4)

        def forward(self, x):
            x = self.up(x)
            centred = x - x.mean(0)
            return (centred / (centred.pow(2).mean(0) + 1e-5).sqrt()).sum()

    normalised = trace(Normalised(), {"x": torch.zeros(8, 4)}, optimizer=SGD())
    what, where, remedy = told(PlanError, plan, normalised, recipe("micro_batches=2"), 1)
    assert "needs" in what
    assert "of the whole batch, which depends on the parameter 'up." in what
    assert re.fullmatch(HERE, where)
    assert "micro_batches=1" in remedy


def test_an_operator_that_is_not_there(graph):
    what, _, remedy = told(PlanError, plan(graph, recipe("none"), 1).explain, "h.0.attn.q/linaer")
    assert "no operator 'h.0.attn.q/linaer'" in what
    assert "--graph" in remedy
