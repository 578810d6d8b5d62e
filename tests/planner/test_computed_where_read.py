"""What depends on no parameter is computed by every stage that reads it: pipelines send activations alone."""

import torch
from torch import nn

from models import llama
from superscaler import compiler
from superscaler.ir.optimizers import SGD, AdamW
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster
from superscaler.planner.steps import StepKind
from tests.planner.samples import plan_of


def test_rotary_tables_are_not_sent():
    graph = trace(llama.build("tiny"), llama.example_inputs("tiny", batch=4), optimizer=AdamW())
    plan = plan_of(graph, "pp=4,micro_batches=2")
    sent = [(m.phase, m.ends) for m in plan.communication() if m.kind is StepKind.SEND]
    assert sent == [("F", (0, 1)), ("F", (1, 2)), ("F", (2, 3)), ("B", (3, 2)), ("B", (2, 1)), ("B", (1, 0))]
    assert "computed on" in plan.explain("cos/stage1")


class LateMask(nn.Module):
    """The mask is made first, and read by the first and the last of three stages."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0, 4.0]))

    def forward(self, x, seen):
        mask = (seen * 2 - 1).to(x.dtype) * self.scale
        x = self.layers[0](x) * mask
        x = self.layers[1](x).tanh()
        return (self.layers[2](x) * mask).square().sum()


def test_masks_follow_from_inputs_and_buffers_on_each_stage_and_stages_keep_their_order():
    torch.manual_seed(0)
    model = LateMask().double()
    inputs = {"x": torch.randn(6, 4, dtype=torch.float64), "seen": torch.rand(6, 4) > 0.5}
    graph = trace(model, inputs, optimizer=SGD(momentum=0.9))

    def script(p):
        meshes = [p.mesh([0, 1], dp=2), p.mesh([2, 3], dp=2), p.mesh([4, 5], x=2)]
        for number, mesh in enumerate(meshes):
            p.assign(p.select(f"layers.{number}"), mesh)
        p.assign(
            next(
                o for o in p.graph.operators if o.kind == "aten.mul.Tensor" and "layers.0/linear" in o.reads
            ),
            meshes[0],
        )
        p.trans(p.axis("batch"), "dp")

    plan = compiler.plan(graph, Cluster.local(6), script).verify()
    assert [mesh.devices for mesh in plan.materialized.stages] == [(0, 1), (2, 3), (4, 5)]
    copies = [o for o in plan.graph.operators if o.name.endswith("/stage2")]
    assert [o.kind for o in copies if o.kind.startswith("aten.mul")]
    assert not any(plan.placed.placements[o.name].cuts for o in copies), "its mesh has no axis dp"
    assert plan.compare_with_eager(model, inputs, steps=2).largest < 1e-12


def test_orders_hold_among_what_is_left():
    graph = trace(llama.build("tiny"), llama.example_inputs("tiny", batch=4), optimizer=AdamW())

    def script(p):
        first, second = p.split_layers(2)
        p.assign(first, p.mesh([0]))
        p.assign(second, p.mesh([1]))
        fixed = next(o for o in p.graph.operators if o.kind == "aten.cos")
        p.assign(fixed, p.mesh([1]))
        p.order(fixed, next(o for o in p.graph.operators if o.kind == "aten.sin"))

    plan = compiler.plan(graph, Cluster.local(2), script).verify()
    assert "cos/stage0" in plan.graph.by_name


def test_what_depends_on_a_parameter_is_sent():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(2))

        def forward(self, x):
            first = self.layers[0](x)
            return (self.layers[1](first.tanh()) + first).square().sum()

    torch.manual_seed(0)
    model, inputs = Shared().double(), {"x": torch.randn(4, 4, dtype=torch.float64)}
    plan = compiler.plan(trace(model, inputs, optimizer=SGD()), Cluster.local(2), "pp=2").verify()
    assert not any("/stage" in operator.name for operator in plan.graph.operators)
    assert plan.compare_with_eager(model, inputs).largest < 1e-12
