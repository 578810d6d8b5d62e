"""Plan strings: read strictly, and the recipes behind them choose well."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from superscaler import compiler
from superscaler.errors import PlanError
from superscaler.ir.optimizers import SGD
from superscaler.ir.tensor import Role
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster
from superscaler.planner.planner import Planner
from superscaler.planner.recipes import PlanOptions, parse_plan, tensor_parallel_axes
from tests.planner.samples import gpt_graph, mlp_graph, plan_of


def test_words_are_read():
    assert parse_plan("none") == parse_plan("") == PlanOptions()
    assert parse_plan(" dp=2, tp=4,sp ,zero=1,schedule=gpipe") == PlanOptions(
        2, 4, zero=1, sp=True, schedule="gpipe"
    )
    assert parse_plan("pp=3,micro_batches=6").num_devices == 3
    assert parse_plan("recompute") == parse_plan("recompute=layers") == PlanOptions(recompute="layers")
    assert parse_plan("dp=2,zero=0") == PlanOptions(2)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("dp=2,warp=9", "word that means nothing: 'warp=9'"),
        ("dp", "word that means nothing: 'dp'"),
        ("dp=-2", "word that means nothing: 'dp=-2'"),
        ("schedule=2f2b", "word that means nothing: 'schedule=2f2b'"),
        ("sp=1", "word that means nothing: 'sp=1'"),
        ("dp=0", "a number below 1"),
        ("dp=2,dp=4", "says dp twice"),
        ("dp=2,zero=4", "word that means nothing: 'zero=4'"),
        ("zero=1", "no dp to cut over"),
        ("dp=2,sp", "no tp to cut over"),
    ],
)
def test_what_is_no_plan_is_refused(text, fault):
    with pytest.raises(PlanError, match=fault) as error:
        parse_plan(text)
    assert repr(text) in error.value.what
    assert error.value.remedy


def test_tensor_parallelism_cuts_heads_hidden_columns_and_vocabulary_and_not_the_width():
    chosen = tensor_parallel_axes(Planner(gpt_graph(), Cluster.local(2)))
    assert sorted(axis.name for axis in chosen) == [
        "h.0.mlp.up.out",
        "h.1.mlp.up.out",
        "heads",
        "heads",
        "vocab",
    ]
    assert {axis.size for axis in chosen} == {4, 256}, "not 64, the residual width"


def test_tensor_parallelism_of_a_perceptron_cuts_its_hidden_columns():
    assert [axis.name for axis in tensor_parallel_axes(Planner(mlp_graph(), Cluster.local(2)))] == ["up.out"]


@pytest.mark.parametrize("text", ["dp=1", "tp=1", "pp=1", "dp=1,tp=1,pp=1,micro_batches=1,zero=0"])
def test_sizes_of_one_say_nothing(text):
    plan = plan_of(gpt_graph(), text)
    assert not plan.transfers
    assert plan.num_devices == 1
    assert not any(placement.cuts for placement in plan.placed.placements.values())


def test_a_sequential_is_a_pipeline_of_its_numbered_modules():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())
    graph = trace(model, {"input": torch.zeros(4, 4)}, loss=lambda out: out.sum(), optimizer=SGD())
    plan = plan_of(graph, "pp=2")
    places = {o.name: plan.placed.placements[o.name].mesh.devices for o in plan.graph.operators}
    assert places["0/linear"] == (0,)
    assert places["2/linear"] == (1,)
    assert len(plan.materialized.stages) == 2


def state_layouts(plan):
    values = plan.materialized.values
    return {
        values[name].tensor.removesuffix("/exp_avg"): values[name].layout
        for name in plan.materialized.stored
        if values[name].tensor.endswith("/exp_avg")
    }


@pytest.mark.parametrize("text", ["dp=2,zero=1", "dp=4,tp=2,zero=1", "dp=2,tp=4,zero=1"])
def test_optimizer_states_are_cut_evenly_over_data_parallel_devices(text):
    plan = plan_of(gpt_graph(), text)
    for name, layout in state_layouts(plan).items():
        assert all(layout.is_even(dim) for dim in range(len(layout.sizes))), name
        assert any("dp" in cut for cut in layout.cuts), name


def test_heads_cut_by_tensor_parallelism_leave_their_columns_to_data_parallelism():
    layouts = state_layouts(plan_of(gpt_graph(), "dp=2,tp=4,zero=1"))
    assert layouts["h.0.attn.q.bias"].cuts == (("tp",), ("dp",)), "4 heads of 16 columns"


def test_a_parameter_too_small_to_cut_stays_whole_with_the_reason():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))
            self.up = nn.Linear(3, 4)

        def forward(self, x):
            return self.up(x * self.scale).sum()

    plan = plan_of(trace(Scaled(), {"x": torch.zeros(4, 3)}, optimizer=SGD(momentum=0.9)), "dp=2,zero=1")
    states = {tensor.name: None for tensor in plan.graph.of_role(Role.STATE)}
    assert len(states) == 3
    reason = plan.explain("scale/sgd")
    assert "not cut over dp: no dim of [3]" in reason
    assert "cut along up.out(4) over dp by zero=1 in the plan 'dp=2,zero=1'" in plan.explain("up.weight/sgd")


def test_zero_follows_the_stages_of_a_pipeline():
    plan = plan_of(gpt_graph(), "dp=2,pp=2,zero=1")
    for name, layout in state_layouts(plan).items():
        assert any("dp" in cut for cut in layout.cuts), name


def test_errors_name_the_word_of_the_plan():
    with pytest.raises(PlanError, match="8 pieces along heads") as error:
        plan_of(gpt_graph(), "tp=8")
    assert error.value.where == "tp=8 in the plan 'tp=8'"
    with pytest.raises(PlanError, match="cannot make 3 parts") as error:
        plan_of(gpt_graph(), "pp=3")
    assert error.value.where == "pp=3 in the plan 'pp=3'"
    with pytest.raises(PlanError, match="no numbered modules"):
        plan_of(mlp_graph(), "pp=2")


def test_what_has_no_weights_or_no_sequence_cannot_be_cut_so():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, x):
            return (x * self.scale).sum()

    graph = trace(Bare(), {"x": torch.zeros(4, 4)}, optimizer=SGD())
    with pytest.raises(PlanError, match="no weight of a matrix product") as error:
        plan_of(graph, "tp=2")
    assert error.value.where == "tp=2 in the plan 'tp=2'"


def test_where_samples_of_two_inputs_meet_each_operator_is_cut_along_those_of_the_first():
    class Contrast(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, texts, images):
            scores = self.left(texts) @ self.right(images).T
            return self.distance(scores) + self.distance(scores.T)

        def distance(self, scores):
            return F.cross_entropy(scores, torch.arange(scores.shape[0], device=scores.device))

    torch.manual_seed(0)
    model = Contrast().double()
    inputs = {"texts": torch.randn(4, 4).double(), "images": torch.randn(4, 4).double()}
    graph = trace(model, inputs, optimizer=SGD())
    made = compiler.plan(graph, Cluster.local(2), "dp=2").verify()
    product = next(operator for operator in graph.operators if operator.kind == "aten.mm")
    assert [names for _, names in made.placed.placements[product.name].cuts] == [("dp",)]
    assert made.compare_with_eager(model, inputs).largest < 1e-12
