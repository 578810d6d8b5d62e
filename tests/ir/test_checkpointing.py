"""A model that calls torch.utils.checkpoint is traced as one that does not; what runs again is for the plan."""

import pytest
import torch
from torch import nn
from torch.utils import checkpoint as module
from torch.utils.checkpoint import checkpoint

from superscaler.ir.checkpointing import unrolled_checkpoints
from superscaler.ir.optimizers import SGD
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster
from superscaler.planner.plan import make_plan
from superscaler.planner.recipes import recipe


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.drop, self.down = nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 4)

    def forward(self, x):
        return self.down(self.drop(torch.tanh(self.up(x))))


class Layers(nn.Module):
    def __init__(self, use_reentrant):
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.use_reentrant = use_reentrant

    def forward(self, x):
        for layer in self.layers:
            run_again = self.use_reentrant is not None
            x = checkpoint(layer, x, use_reentrant=self.use_reentrant) if run_again else layer(x)
        return x.square().mean()


def kinds(graph):
    return [
        (operator.kind, operator.module, operator.reads, operator.keywords) for operator in graph.operators
    ]


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_the_graph_is_that_of_the_model_without_checkpoints(use_reentrant):
    inputs = (torch.randn(3, 4),)
    with pytest.warns(
        UserWarning, match=r"test_checkpointing\.py:\d+\), which is left to the plan: add `recompute`"
    ):
        graph = trace(Layers(use_reentrant), inputs, optimizer=SGD())
    plain = trace(Layers(None), inputs, optimizer=SGD())
    assert kinds(graph) == kinds(plain)
    plan = make_plan(graph, Cluster.local(1), recipe("recompute"), "recompute")
    assert {operator.module.split(".")[1] for operator in plan.graph.operators if operator.is_again} == {
        "0",
        "1",
    }


def test_inference_runs_nothing_again_and_warns_of_nothing():
    assert kinds(trace(Layers(False), (torch.randn(3, 4),))) == kinds(
        trace(Layers(None), (torch.randn(3, 4),))
    )


def test_torch_is_left_as_it_was():
    before = module.CheckpointFunction, module._checkpoint_without_reentrant_generator
    with unrolled_checkpoints():
        assert module.CheckpointFunction is not before[0]
    assert (module.CheckpointFunction, module._checkpoint_without_reentrant_generator) == before
