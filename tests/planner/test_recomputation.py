"""Which parts of the forward run again: the inside of attention, layers, or all of a stage."""

import pytest
import torch
from torch import nn

from models import alphafold2, swin
from superscaler import compiler
from superscaler.codegen.memory import peak_memory
from superscaler.errors import PlanError
from superscaler.ir.graph import Phase
from superscaler.ir.optimizers import AdamW
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster
from superscaler.planner.planner import Planner
from superscaler.planner.recipes.blocks import forward_of_layers
from superscaler.planner.recipes.recomputation import attentions_in
from tests.codegen.plans import planned, tiny_gpt


def attentions_of(graph):
    """The kinds of operators in each attention of each layer."""
    p = Planner(graph, Cluster.local(1))
    return [
        [operator.kind for operator in attention]
        for layer in forward_of_layers(p)
        for attention in attentions_in(graph, layer.operators)
    ]


def test_an_attention_that_is_one_operator_is_its_inside():
    assert attentions_of(tiny_gpt()[2]) == [["attention"], ["attention"]]


def test_otherwise_it_is_from_the_product_with_keys_to_the_product_with_values():
    graph = trace(swin.build("tiny"), swin.example_inputs("tiny", batch=2), optimizer=AdamW())
    found = attentions_of(graph)
    assert len(found) == 4, "two stages of two blocks"
    for kinds in found:
        assert kinds.count("aten.bmm") == 2
        assert kinds[0] == kinds[-1] == "aten.bmm"
        assert sum("softmax" in kind for kind in kinds) == 1
        assert "linear" not in kinds


def test_products_of_activations_that_lead_to_no_other_are_no_attention():
    sizes = {"blocks": 1, "recycles": 0}
    graph = trace(
        alphafold2.build("tiny", **sizes),
        alphafold2.example_inputs("tiny", batch=2, **sizes),
        optimizer=AdamW(),
    )
    (block,) = forward_of_layers(Planner(graph, Cluster.local(1)))
    attentions = attentions_in(graph, block.operators)
    inside = {operator.module for attention in attentions for operator in attention}
    assert len(attentions) == 4, "rows and columns of the alignment, starting and ending nodes of the pairs"
    assert not any("outer" in module or "multiplication" in module for module in inside)


def test_a_stage_that_runs_again_stores_its_input_alone():
    graph = tiny_gpt(layers=4)[2]
    plan = planned(graph, "pp=2,recompute=full,micro_batches=4")
    layers = [operator for operator in plan.graph.operators if operator.module.startswith("h.")]
    made = {
        name: operator for operator in layers if operator.phase is Phase.FORWARD for name in operator.writes
    }
    place = {operator.name: plan.placed.placements[operator.name].mesh for operator in layers}
    stored = {name for o in layers if o.phase is Phase.BACKWARD for name in o.reads if name in made}
    sent = {
        name
        for name, writer in made.items()
        if any(
            reader.name in place and place[reader.name] != place[writer.name]
            for reader in graph.readers[name]
        )
    }
    assert len(sent) == 1
    assert stored == sent


def test_the_more_runs_again_the_less_waiting_micro_batches_store():
    graph = tiny_gpt(layers=8)[2]

    def most(words):
        plan = compiler.plan(graph, Cluster.local(2), f"pp=2,schedule=gpipe,micro_batches=8{words}")
        return max(peak_memory(program).activations for program in plan.programs)

    sizes = [most(words) for words in ("", ",recompute=selective", ",recompute=layers", ",recompute=full")]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4


@pytest.mark.parametrize("word", ["selective", "full"])
def test_a_model_that_is_not_trained_has_nothing_to_compute_again(word):
    model, inputs, _ = tiny_gpt()
    with pytest.raises(PlanError, match="that store anything for a backward"):
        planned(trace(model, inputs), f"recompute={word}")


def test_attention_of_single_operators_runs_again_with_the_same_dropout():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x):
            shares = torch.softmax(self.q(x) @ self.k(x).transpose(-2, -1), -1)
            return x + self.out(nn.functional.dropout(shares, 0.2) @ self.v(x))

    torch.manual_seed(0)
    model = nn.Sequential(Layer(), Layer()).double()
    inputs = (torch.randn(4, 6, 8, dtype=torch.float64),)
    graph = trace(model, inputs, loss=lambda y: y.square().mean(), optimizer=AdamW(eps=1e-5))
    plan = compiler.plan(graph, Cluster.local(2), "dp=2,recompute=selective").verify()
    again = [operator.kind for operator in plan.graph.operators if operator.is_again]
    assert again.count("dropout") == 2
    assert not any("linear" in kind for kind in again)
    assert plan.compare_with_eager(model, inputs, loss=lambda y: y.square().mean()).largest < 1e-12
