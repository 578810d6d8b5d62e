"""Models and plans the tests of this room share."""

from functools import cache

import torch

from models import gpt
from superscaler.codegen.lower import lower
from superscaler.codegen.offload import offload
from superscaler.codegen.overlap import overlap
from superscaler.codegen.program import Program
from superscaler.ir.graph import Graph
from superscaler.ir.optimizers import AdamW
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster
from superscaler.planner.plan import Plan, make_plan
from superscaler.planner.recipes import parse_plan, recipe

SIZES = {"layers": 2, "width": 16, "heads": 4, "seq": 8, "vocab": 32}


@cache
def tiny_gpt(
    layers: int = 2, batch: int = 8, dropout: float = 0.0
) -> tuple[gpt.GPT, dict[str, torch.Tensor], Graph]:
    """A GPT in float64, its inputs, and its training step."""
    torch.manual_seed(0)
    sizes = {**SIZES, "layers": layers}
    model = gpt.build("tiny", **sizes, dropout=dropout).double()
    inputs = gpt.example_inputs("tiny", batch=batch, **sizes)
    return model, inputs, trace(model, inputs, optimizer=AdamW())


def planned(graph: Graph, how, devices: int = 0) -> Plan:
    """A plan by string or by script."""
    if isinstance(how, str):
        return make_plan(graph, Cluster.local(parse_plan(how).num_devices), recipe(how), how)
    return make_plan(graph, Cluster.local(devices), how, how.__name__)


def programs_of(plan: Plan) -> list[Program]:
    """Its programs, as lowered."""
    return list(offload(plan, overlap(plan, lower(plan))))
