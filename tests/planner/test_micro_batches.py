"""What needs the whole batch waits for it, is known beforehand, or is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from superscaler.errors import PlanError
from superscaler.ir.axes import find_axes
from superscaler.ir.graph import Phase, drop_unread
from superscaler.ir.interpret import interpret
from superscaler.ir.optimizers import SGD
from superscaler.ir.trace import trace
from superscaler.planner.micro_batches import batch_axes, compute_sums_beforehand, find_phases
from tests.planner.dependencies import assert_dependencies_hold
from tests.planner.samples import gpt_graph, mlp_graph, plan_of


class Masked(nn.Module):
    """A loss over the tokens that count, whose number only the whole batch knows."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 5)

    def forward(self, x, targets):
        return F.cross_entropy(self.head(x), targets, ignore_index=0)


@pytest.fixture(scope="module")
def masked():
    torch.manual_seed(0)
    inputs = {"x": torch.randn(8, 4), "targets": torch.tensor([0, 1, 2, 0, 3, 4, 0, 1])}
    model = Masked()
    return model, inputs, trace(model, inputs, optimizer=SGD(lr=0.1))


def test_the_batch_is_the_first_dim_of_the_inputs():
    axes = find_axes(gpt_graph())
    assert [(axis.name, axis.size) for axis in batch_axes(gpt_graph(), axes)] == [("batch", 8)]


def test_one_micro_batch_changes_no_phase():
    graph = gpt_graph()
    assert find_phases(graph, find_axes(graph), 1) == {
        operator.name: operator.phase for operator in graph.operators
    }


def test_what_sums_over_the_batch_stays_and_what_reads_the_sum_waits():
    plan = plan_of(mlp_graph(), "micro_batches=2")
    phases = plan.placed.phases
    assert phases["up/linear"] is Phase.FORWARD
    assert phases["up/linear_weight_gradient"] is Phase.BACKWARD
    assert {phase for name, phase in phases.items() if name.endswith("/adamw")} == {Phase.UPDATE}
    assert_dependencies_hold(plan.materialized)


def test_the_number_of_tokens_that_count_is_known_before_the_first_micro_batch(masked):
    _, _, graph = masked
    plan = plan_of(graph, "micro_batches=4")
    early = [o for o in plan.graph.operators if plan.placed.phases[o.name] is Phase.PREPARE]
    written = {name for operator in early for name in operator.writes}
    assert {name for operator in early for name in operator.reads} - written == {"targets"}
    late = [o for o in plan.graph.operators if plan.placed.phases[o.name] in (Phase.FORWARD, Phase.BACKWARD)]
    assert any(written & set(operator.reads) for operator in late), "the micro-batches divide by it"
    assert_dependencies_hold(plan.materialized)


def test_computing_beforehand_computes_the_same(masked):
    model, inputs, graph = masked
    changed = drop_unread(compute_sums_beforehand(graph, find_axes(graph)))
    assert changed.operators != graph.operators
    held = {name: value.detach() for name, value in model.named_parameters()}
    given = {**held, **inputs, "step": 1}
    before, after = interpret(graph, given), interpret(changed, given)
    for name in (*graph.outputs, *graph.gradients.values(), *graph.updates.values()):
        assert torch.equal(before[name], after[name]), name


class Centred(nn.Module):
    """Subtracts the mean over the batch, as a batch normalisation does."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(4, 4)

    def forward(self, x):
        hidden = self.up(x)
        return (hidden - hidden.mean(0)).pow(2).mean()


def test_a_layer_that_mixes_samples_is_refused_with_its_line_and_the_parameter():
    graph = trace(Centred(), {"x": torch.zeros(8, 4)}, optimizer=SGD())
    plan_of(graph, "none")
    with pytest.raises(
        PlanError, match=r"needs .* of the whole batch, which depends on the parameter 'up"
    ) as error:
        plan_of(graph, "micro_batches=2")
    assert "test_micro_batches.py:" in error.value.where
    assert "micro_batches=1" in error.value.remedy


@pytest.mark.parametrize("micro_batches", [3, 16])
def test_a_batch_that_does_not_divide_is_refused(micro_batches):
    with pytest.raises(
        PlanError, match=f"8 samples cannot be cut into {micro_batches} equal micro-batches"
    ) as error:
        plan_of(mlp_graph(), f"micro_batches={micro_batches}")
    assert f"micro_batches={micro_batches}" in error.value.where
    assert "divides 8" in error.value.remedy
