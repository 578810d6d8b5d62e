"""Every plan of every model computes what eager PyTorch does, and is proved to."""

from importlib import import_module

import pytest
import torch

from superscaler import compiler
from superscaler.ir.optimizers import AdamW
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import parse_plan

PLANS = ["dp=2,micro_batches=2", "tp=2", "pp=2", "dp=2,tp=2,zero=1", "tp=2,pp=2,micro_batches=2"]
CASES = [("mlp", plan) for plan in PLANS if "pp" not in plan] + [
    (name, plan) for name in ("llama", "mbart") for plan in PLANS
]


@pytest.fixture(scope="module")
def traced():
    """Each model in double precision, its inputs and its graph; traced once."""
    cache = {}

    def of(name):
        if name not in cache:
            torch.manual_seed(0)
            module = import_module(f"models.{name}")
            model = module.build("tiny").double()
            inputs = {
                key: value.double() if value.is_floating_point() else value
                for key, value in module.example_inputs("tiny", batch=4).items()
            }
            cache[name] = model, inputs, trace(model, inputs, optimizer=AdamW())
        return cache[name]

    return of


@pytest.mark.parametrize(("name", "how"), CASES)
def test_a_plan_computes_what_the_model_does(traced, name, how):
    model, inputs, graph = traced(name)
    plan = compiler.plan(graph, Cluster.local(parse_plan(how).num_devices), how)
    plan.verify()
    assert plan.compare_with_eager(model, inputs).largest < 1e-9
