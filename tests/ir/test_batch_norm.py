"""Batch normalisation: what is traced gives the loss, gradients and running statistics of torch, under every plan."""

import pytest
import torch
from torch import nn

from superscaler import compiler
from superscaler.errors import TraceError
from superscaler.ir.optimizers import AdamW
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster


class Normalised(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.convolution = nn.Linear(6, 6, bias=False)
        self.norm = nn.BatchNorm2d(6, **options)
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        x = self.convolution(x.movedim(1, -1)).movedim(-1, 1)
        x = self.norm(x).relu()
        return self.out(x.mean((2, 3))).square().mean()


def compared(model, plan, devices):
    torch.manual_seed(0)
    inputs = {"x": torch.randn(8, 6, 4, 3, dtype=torch.float64)}
    graph = trace(model.double(), inputs, optimizer=AdamW())
    made = compiler.plan(graph, Cluster.local(devices), plan).verify()
    return graph, made.compare_with_eager(model, inputs)


@pytest.mark.parametrize(
    ("plan", "devices"), [("none", 1), ("dp=2", 2), ("dp=4", 4), ("tp=2", 2), ("dp=3", 3)]
)
def test_statistics_of_the_whole_batch_are_used_and_kept_under_every_plan(plan, devices):
    graph, comparison = compared(Normalised(), plan, devices)
    assert {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"} <= set(graph.updates)
    assert comparison.largest < 1e-11, comparison.worst


@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}, {"momentum": 0.3}])
def test_every_form_of_the_layer_is_that_of_torch(options):
    assert compared(Normalised(**options), "dp=2", 2)[1].largest < 1e-11


def test_a_layer_in_evaluation_mode_uses_its_running_statistics():
    model = Normalised()
    model.norm.eval()
    model.norm.running_mean.uniform_()
    model.norm.running_var.uniform_(0.5, 2)
    graph, comparison = compared(model, "dp=2", 2)
    assert not {"norm.running_mean", "norm.running_var"} & set(graph.updates)
    assert comparison.largest < 1e-11


def test_micro_batches_are_refused_as_each_would_have_statistics_of_its_own():
    with pytest.raises(ValueError, match=r"needs .* of the whole batch"):
        compared(Normalised(), "micro_batches=2", 1)


def test_averages_over_all_steps_are_refused():
    with pytest.raises(TraceError, match="decides by the value"):
        trace(Normalised(momentum=None), {"x": torch.zeros(8, 6, 4, 3)}, optimizer=AdamW())


def test_half_precision_is_normalised_in_float32():
    from superscaler.runtime import ops

    x = torch.randn(16, 3, 5).bfloat16()
    mean = ops.channel_sums(x) / 80
    rstd = (ops.channel_squares(x, mean) / 80 + 1e-5).rsqrt()
    assert mean.dtype is torch.float32
    y = ops.batch_norm(x, mean, rstd)
    assert y.dtype is torch.bfloat16
    truth = torch.nn.functional.batch_norm(x.float(), None, None, training=True)
    torch.testing.assert_close(y.float(), truth, rtol=1e-2, atol=1e-2)
