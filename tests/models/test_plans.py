"""Every plan of every model computes what eager PyTorch does, and is proved to."""

from importlib import import_module

import pytest
import torch
from torch import nn

from superscaler import compiler
from superscaler.ir.optimizers import AdamW
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import parse_plan

PLANS = ("dp=2,micro_batches=2", "tp=2", "pp=2", "dp=2,tp=2,zero=1", "tp=2,pp=2,micro_batches=2")
CASES = [
    *(("mlp", plan, {}) for plan in PLANS if "pp" not in plan),
    *((name, plan, {}) for name in ("llama", "mbart", "swin", "moe") for plan in PLANS),
    ("alphafold2", "dp=2,tp=2", {"blocks": 1, "recycles": 1}),
    ("alphafold2", "pp=2,micro_batches=2", {"blocks": 2, "recycles": 0}),
]


@pytest.fixture(scope="module")
def traced():
    """Each model in double precision, far from its start, its inputs and its graph; traced once."""
    cache = {}

    def of(name, changed):
        key = name, *changed.items()
        if key not in cache:
            torch.manual_seed(0)
            module = import_module(f"models.{name}")
            model = module.build("tiny", **changed).double()
            for parameter in model.parameters():
                nn.init.normal_(parameter, std=0.3)
            inputs = {
                name: value.double() if value.is_floating_point() else value
                for name, value in module.example_inputs("tiny", batch=4, **changed).items()
            }
            cache[key] = model, inputs, trace(model, inputs, optimizer=AdamW())
        return cache[key]

    return of


@pytest.mark.parametrize(("name", "how", "changed"), CASES)
def test_a_plan_computes_what_the_model_does(traced, name, how, changed):
    model, inputs, graph = traced(name, changed)
    plan = compiler.plan(graph, Cluster.local(parse_plan(how).num_devices), how)
    plan.verify()
    assert plan.compare_with_eager(model, inputs).largest < 1e-9


def test_experts_are_cut_over_devices(traced):
    """Expert parallelism: every device holds half of the experts; tokens are summed once per layer."""
    model, inputs, graph = traced("moe", {})

    def script(p):
        p.assign(p.everything(), p.mesh(range(2), ep=2))
        p.trans(p.select("layers.*.router.gate", "F").axis("n"), "ep")

    plan = compiler.plan(graph, Cluster.local(2), script)
    plan.verify()
    assert plan.compare_with_eager(model, inputs).largest < 1e-9
    products = [o for o in plan.graph.operators if o.kind == "aten.bmm" and o.module.endswith(".experts")]
    assert products
    assert all("ep" in plan.placed.placements[operator.name].used for operator in products)
