"""Graphs and plans the planner's tests share; traced once."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

from models import gpt
from superscaler.ir.graph import Graph
from superscaler.ir.optimizers import AdamW
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster
from superscaler.planner.plan import Plan, make_plan
from superscaler.planner.recipes import parse_plan, recipe


class MLP(nn.Module):
    """Two layers with a ReLU between them and a squared error."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(12, 20)
        self.down = nn.Linear(20, 6)

    def forward(self, x, y):
        return F.mse_loss(self.down(torch.relu(self.up(x))), y)


@cache
def mlp_graph() -> Graph:
    return trace(MLP(), {"x": torch.zeros(8, 12), "y": torch.zeros(8, 6)}, optimizer=AdamW())


@cache
def gpt_graph(seq: int = 64, **overrides: int) -> Graph:
    """GPT tiny with two layers: batch 8, width 64, 4 heads, vocab 256."""
    overrides = {"layers": 2, "seq": seq, **overrides}
    inputs = gpt.example_inputs("tiny", batch=8, **overrides)
    return trace(gpt.build("tiny", **overrides), inputs, optimizer=AdamW())


def plan_of(graph: Graph, text: str) -> Plan:
    """The plan of a plan string, on as many devices as it needs."""
    return make_plan(graph, Cluster.local(parse_plan(text).num_devices), recipe(text), text)


def script_plan(graph: Graph, devices: int, script) -> Plan:
    return make_plan(graph, Cluster.local(devices), script, "script")


def moves(plan: Plan, phase: str, kind: str, over: str = "") -> list[tuple[str, int]]:
    """Every transfer of a kind: the logical tensor, and the bytes one device holds before it."""
    found = []
    for when, transfer in plan.transfers:
        step = transfer.step
        if when == phase and step.kind == kind and (not over or step.axis == over):
            value = plan.materialized.values[transfer.read]
            coordinates = {**dict.fromkeys(step.before.mesh.names, 0), "mb": 0}
            elements = step.before.region(coordinates).num_elements
            whole = plan.graph.tensors[value.tensor]
            found.append((value.tensor, elements * whole.num_bytes // whole.num_elements))
    return found
