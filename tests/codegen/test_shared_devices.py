"""Programs of devices that take part in several stages train as eager PyTorch does, under torchrun."""

import pytest
import torch
from safetensors.torch import save_file

from superscaler import compiler
from superscaler.codegen.emit import emit
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import data_parallel
from superscaler.planner.schedules import bidirectional, gpipe, interlaced, interleaved, zb_v
from superscaler.runtime.loaded import load
from tests.codegen.plans import tiny_gpt
from tests.codegen.test_emit import (
    OPTIMIZER,
    STEPS,
    assert_equal,
    eager_training,
    small_gpt,
    small_inputs,
    torchrun,
)

LAYERS = 4


def virtual_stages(p):
    """Four virtual stages on two groups of two devices."""
    for number, layers in enumerate(p.split("h.*", 4)):
        p.assign(layers, p.mesh([2 * (number % 2), 2 * (number % 2) + 1], dp=2), chunk=number // 2)
    data_parallel(p)
    p.order(interleaved(4))


def there_and_back(p):
    """Four stages on two devices, of which the middle two hand over on one device."""
    for number, layers in enumerate(p.split("h.*", 4)):
        p.assign(layers, p.mesh([min(number, 3 - number)]), chunk=number // 2)
    p.order(zb_v(4))


def both_ways(p):
    """Two replicas of two stages, in opposite order on the same two devices."""
    for number, layers in enumerate(p.split("h.*", 2)):
        p.assign(layers, p.mesh([number, 1 - number], lane=2))
    data_parallel(p, "lane")
    p.order(bidirectional(4))


def wide_embedding(p):
    """An embedding whose vocabulary is cut over the devices of both stages."""
    for number, layers in enumerate(p.split("h.*", 2)):
        p.assign(layers, p.mesh([number]))
    p.assign(p.select("wte"), p.mesh([0, 1], tp=2))
    p.trans(p.axis("vocab"), "tp")
    p.order(interlaced(4))


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("script", "devices"), [(virtual_stages, 4), (there_and_back, 2), (both_ways, 2), (wide_embedding, 2)]
)
def test_torchrun_trains_as_eager(script, devices, tmp_path):
    torch.manual_seed(1)
    data = small_inputs(16 * STEPS)
    save_file(data, tmp_path / "data.safetensors")
    compiler.compile(
        small_gpt(layers=LAYERS), small_inputs(16), cluster=Cluster.local(devices), plan=script,
        optimizer=OPTIMIZER, save=tmp_path / "build",
    )  # fmt: skip
    losses, weights = torchrun(tmp_path, devices)
    batches = [{name: value[16 * i : 16 * (i + 1)] for name, value in data.items()} for i in range(STEPS)]
    assert_equal(losses, weights, eager_training(batches, layers=LAYERS))


def test_one_device_runs_several_stages(tmp_path):
    def script(p):
        for number, layers in enumerate(p.split("h.*", 2)):
            p.assign(layers, p.mesh([0]), chunk=number)
        p.order(interleaved(4))

    batches = [small_inputs(8) for _ in range(STEPS)]
    cluster = Cluster.local(1)
    compiler.compile(
        small_gpt(), batches[0], cluster=cluster, plan=script, optimizer=OPTIMIZER, save=tmp_path / "b"
    )
    program = load(tmp_path / "b", "cpu")
    losses = [program(batch).item() for batch in batches]
    assert_equal(losses, program.weights, eager_training(batches))


def uneven_rows(p):
    """The second stage's devices are of two rows, since the third takes one of them."""
    for layers, devices in zip(p.split("h.*", 3), ([0, 1], [2, 3], [3, 4]), strict=True):
        p.assign(layers, p.mesh(devices, dp=2))
    data_parallel(p)
    p.order(gpipe(2))


def test_rows_send_to_several_rows():
    model, inputs, graph = tiny_gpt(layers=3)
    plan = compiler.plan(graph, Cluster.local(5), uneven_rows).verify()
    assert [row.devices for row in plan.materialized.rows] == [(0, 1), (2,), (3,), (4,)]
    assert plan.compare_with_eager(model, inputs).largest < 1e-11


def test_a_device_updates_what_it_holds_beside_what_another_holds():
    """The backward and the update of a layer run elsewhere than its forward, which alone reads the biases."""

    def script(p):
        p.assign(p.everything(), p.mesh([0]))
        p.assign(p.select("h.1"), p.mesh([1]))
        p.assign(p.select("h.1", "F"), p.mesh([0]))

    model, inputs, graph = tiny_gpt()
    plan = compiler.plan(graph, Cluster.local(2), script).verify()
    assert plan.compare_with_eager(model, inputs).largest < 1e-11
    updates = [emit(plan, program).partition("def update")[2] for program in plan.programs]
    assert [text.count("adamw_(") for text in updates] == [1, 1]
    assert "adamw(" in updates[1]
