"""Dropout under plans: which elements are dropped does not depend on how, or where, they are computed."""

import pytest
import torch
from safetensors.torch import save_file

from superscaler import compiler
from superscaler.codegen.comparison import initial_state
from superscaler.codegen.virtual import run_step
from superscaler.ir.optimizers import AdamW
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import parse_plan
from tests.codegen.plans import planned, programs_of, tiny_gpt
from tests.codegen.test_emit import STEPS, small_gpt, small_inputs, torchrun


def losses_of(plan, steps=20):
    model, inputs, graph = tiny_gpt(dropout=0.1)
    made = planned(graph, plan)
    state, losses = initial_state(graph, model), []
    for step in range(1, steps + 1):
        result = run_step(programs_of(made), state, inputs, step)
        state = result.state
        losses.append(result.outputs[graph.outputs[0]].item())
    return losses


@pytest.fixture(scope="module")
def losses_on_one_device():
    return losses_of("none")


@pytest.mark.parametrize("plan", ["dp=2", "tp=2", "pp=2", "tp=2,sp", "dp=2,tp=2,pp=2,micro_batches=2"])
def test_twenty_steps_with_dropout_have_the_losses_of_one_device(plan, losses_on_one_device):
    assert losses_of(plan) == pytest.approx(losses_on_one_device, rel=1e-10)


def test_dropout_drops_other_elements_every_step(losses_on_one_device):
    model, inputs, graph = tiny_gpt(dropout=0.1)
    state, programs = initial_state(graph, model), programs_of(planned(graph, "none"))
    first, second = (
        run_step(programs, state, inputs, step).outputs[graph.outputs[0]].item() for step in (1, 2)
    )
    assert first == pytest.approx(losses_on_one_device[0], rel=1e-12)
    assert abs(first - second) > 1e-6 * first


@pytest.mark.ranks
@pytest.mark.parametrize("plan", ["none", "tp=2,pp=2"])
def test_under_torchrun_the_losses_are_those_of_the_virtual_cluster(plan, tmp_path):
    torch.manual_seed(1)
    data = small_inputs(8 * STEPS)
    save_file(data, tmp_path / "data.safetensors")
    model = small_gpt(dropout=0.1)
    made = compiler.compile(
        model, small_inputs(8), cluster=Cluster.local(parse_plan(plan).num_devices), plan=plan,
        optimizer=AdamW(lr=3e-4), save=tmp_path / "build",
    )  # fmt: skip
    losses, _ = torchrun(tmp_path, made.num_devices)
    state = initial_state(made.graph, model)
    for step, loss in enumerate(losses):
        batch = {name: value[8 * step : 8 * step + 8] for name, value in data.items()}
        result = run_step(made.programs, state, batch, step + 1)
        state = result.state
        assert loss == pytest.approx(result.outputs[made.graph.outputs[0]].item(), rel=1e-12)
