"""Stages are numbered so that the forward pass can run them in order."""

import torch
import torch.nn.functional as F
from torch import nn

from superscaler.ir.optimizers import AdamW
from superscaler.ir.trace import trace
from tests.planner.samples import script_plan


class TargetsFirst(nn.Module):
    """What the loss reads is prepared before anything else."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 4)

    def forward(self, x, y):
        targets = y.abs()
        return F.mse_loss(torch.relu(self.up(x)), targets)


def test_a_stage_follows_what_feeds_it_though_its_first_operator_comes_earlier():
    def script(p):
        p.assign(p.everything(), p.mesh([1]))
        p.assign(p.select("up"), p.mesh([0]))

    inputs = {"x": torch.zeros(8, 6), "y": torch.zeros(8, 4)}
    plan = script_plan(trace(TargetsFirst(), inputs, optimizer=AdamW()), 2, script)
    assert [mesh.devices for mesh in plan.materialized.stages] == [(0,), (1,)]
    assert plan.materialized.pipeline.edges == ((0, 1),)
