"""Generated programs against eager PyTorch, in this process and under torchrun; and how they read."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models import gpt, swin
from superscaler import compiler
from superscaler.codegen.program import Exchange, Part
from superscaler.ir.graph import Phase
from superscaler.ir.optimizers import AdamW
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import parse_plan
from superscaler.planner.transport import Collective, Measured
from superscaler.runtime.loaded import load

OPTIMIZER = AdamW(lr=3e-4)
STEPS = 3


def small_gpt(**overrides):
    torch.manual_seed(0)
    return gpt.build("tiny", **{"layers": 4, "width": 32, "seq": 16, "vocab": 64, **overrides}).double()


def small_inputs(batch):
    return gpt.example_inputs("tiny", batch=batch, layers=4, width=32, seq=16, vocab=64)


def eager_training(batches, **overrides):
    model = small_gpt(**overrides)
    optimizer = torch.optim.AdamW(model.parameters(), OPTIMIZER.lr, weight_decay=OPTIMIZER.weight_decay)
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        loss = model(**batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, dict(model.named_parameters())


def assert_equal(losses, weights, truth):
    torch.testing.assert_close(losses, truth[0], rtol=1e-12, atol=0)
    assert set(weights) == set(truth[1])
    for name, value in truth[1].items():
        assert (weights[name] - value).norm() <= 1e-12 * value.norm(), name


@pytest.mark.parametrize("plan", ["none", "micro_batches=4"])
def test_one_device_trains_as_eager(plan, tmp_path):
    batches = [small_inputs(8) for _ in range(STEPS)]
    cluster = Cluster.local(1)
    compiler.compile(
        small_gpt(), batches[0], cluster=cluster, plan=plan, optimizer=OPTIMIZER, save=tmp_path / "b"
    )
    program = load(tmp_path / "b", "cpu")
    losses = [program(batch).item() for batch in batches]
    assert_equal(losses, program.weights, eager_training(batches))


def test_a_sum_with_a_view_of_itself_is_not_written_over_it(tmp_path):
    class Symmetric(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(3, 4)

        def forward(self, x):
            half = self.head(x)
            return (half + half.transpose(1, 2)).square().mean()

    torch.manual_seed(0)
    model, inputs = Symmetric().double(), {"x": torch.randn(2, 5, 5, 3, dtype=torch.float64)}
    expected = model(**inputs)
    compiler.compile(model, inputs, cluster=Cluster.local(1), optimizer=OPTIMIZER, save=tmp_path / "b")
    torch.testing.assert_close(load(tmp_path / "b")(inputs), expected.detach(), rtol=1e-12, atol=0)


def test_a_number_is_added_in_place(tmp_path):
    class Shifted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = torch.nn.Linear(3, 4), torch.nn.Linear(4, 3)

        def forward(self, x):
            return self.down(self.up(x) + torch.full((), 0.5, dtype=x.dtype)).square().mean()

    torch.manual_seed(0)
    model, inputs = Shifted().double(), {"x": torch.randn(5, 3, dtype=torch.float64)}
    expected = model(**inputs)
    compiler.compile(model, inputs, cluster=Cluster.local(1), optimizer=OPTIMIZER, save=tmp_path / "b")
    assert ".add_(0.5)" in "".join(path.read_text() for path in (tmp_path / "b").glob("*.py"))
    torch.testing.assert_close(load(tmp_path / "b")(inputs), expected.detach(), rtol=1e-12, atol=0)


def test_what_a_loop_carries_has_no_name_of_what_all_its_calls_read(tmp_path):
    torch.manual_seed(0)
    model, inputs = swin.build("tiny").double(), swin.example_inputs("tiny", batch=4)
    inputs = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
    expected = model(**inputs)
    # a table of positions and the image between its layers would both be called x
    compiler.compile(
        model,
        inputs,
        cluster=Cluster.local(1),
        plan="micro_batches=2",
        optimizer=OPTIMIZER,
        save=tmp_path / "b",
    )
    torch.testing.assert_close(load(tmp_path / "b")(inputs), expected.detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("options", [{"bias": False}, {"elementwise_affine": False}])
def test_gradients_that_a_normalisation_does_not_have_are_left_out(options, tmp_path):
    def build():
        torch.manual_seed(0)
        layers = torch.nn.Linear(4, 6), torch.nn.LayerNorm(6, **options), torch.nn.Linear(6, 3)
        return torch.nn.Sequential(*layers).double()

    x = torch.randn(8, 4, dtype=torch.float64)
    compiler.compile(
        build(), (x,), loss=lambda y: y.square().mean(), cluster=Cluster.local(1), optimizer=OPTIMIZER,
        save=tmp_path / "b",
    )  # fmt: skip
    program, model = load(tmp_path / "b", "cpu"), build()
    optimizer = torch.optim.AdamW(model.parameters(), OPTIMIZER.lr, weight_decay=OPTIMIZER.weight_decay)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        torch.testing.assert_close(program({"input": x}), loss.detach(), rtol=1e-12, atol=0)


@pytest.mark.ranks
@pytest.mark.parametrize(
    "plan",
    [
        "dp=2",
        "tp=2",
        "pp=2",
        "dp=2,zero=1",
        "dp=2,zero=2,micro_batches=2",
        "dp=2,zero=3",
        "dp=2,tp=2",
        "tp=2,sp",
        "dp=2,tp=2,pp=2,schedule=1f1b,micro_batches=4",
        "pp=2,schedule=zb-h1,micro_batches=4",
        "pp=2,schedule=interleaved,micro_batches=4",
        "pp=2,schedule=zb-v,micro_batches=4",
        "pp=2,tp=2,schedule=bidirectional,micro_batches=2",
        "pp=2,schedule=interlaced,micro_batches=4",
        "dp=2,pp=2,schedule=interlaced-ahead,micro_batches=4",
    ],
)
def test_torchrun_trains_as_eager(plan, tmp_path):
    devices = parse_plan(plan).num_devices
    torch.manual_seed(1)
    data = small_inputs(16 * STEPS)
    save_file(data, tmp_path / "data.safetensors")
    compiler.compile(
        small_gpt(), small_inputs(16), cluster=Cluster.local(devices), plan=plan, optimizer=OPTIMIZER,
        save=tmp_path / "build",
    )  # fmt: skip
    losses, weights = torchrun(tmp_path, devices)
    batches = [{name: value[16 * i : 16 * (i + 1)] for name, value in data.items()} for i in range(STEPS)]
    assert_equal(losses, weights, eager_training(batches))


@pytest.mark.ranks
def test_layers_whose_gradients_travel_by_messages_train_as_eager(tmp_path):
    """Where gathers are measured to be slow, pieces of gradients are sent, and kept as they arrive."""
    cluster = Cluster.local(2)
    transport = cluster.transport
    for collective in (Collective.ALL_GATHER, Collective.ALL_REDUCE):
        transport = transport.with_measured(collective, Measured(latency=100.0, bandwidth=0.01))
    data = small_inputs(16 * STEPS)
    save_file(data, tmp_path / "data.safetensors")
    plan = compiler.compile(
        small_gpt(), small_inputs(16), cluster=replace(cluster, transport=transport), plan="dp=2",
        optimizer=OPTIMIZER, save=tmp_path / "build",
    )  # fmt: skip
    backward = plan.programs[0].bodies[Part(Phase.BACKWARD, 0)]
    assert any(isinstance(i, Exchange) and "h.1" in i.write for i in backward)
    losses, weights = torchrun(tmp_path, 2)
    batches = [{name: value[16 * i : 16 * (i + 1)] for name, value in data.items()} for i in range(STEPS)]
    assert_equal(losses, weights, eager_training(batches))


def torchrun(folder, devices):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={devices}", f"--master-port={port}",
        str(folder / "build" / "train.py"), f"--steps={STEPS}", f"--data={folder / 'data.safetensors'}",
        f"--losses={folder / 'losses.json'}", f"--save={folder / 'saved.safetensors'}",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "losses.json").read_text()), load_file(folder / "saved.safetensors")


def test_the_program_of_a_four_layer_gpt_is_short_and_has_each_block_once(tmp_path):
    model, inputs = gpt.build("tiny"), gpt.example_inputs("tiny")
    compiler.compile(
        model, inputs, cluster=Cluster.local(4), plan="dp=2,tp=2", optimizer=OPTIMIZER, save=tmp_path / "b"
    )
    source = (tmp_path / "b" / "stage0.py").read_text()
    assert len(source.splitlines()) < 300
    assert source.count("ops.attention(") == 1
    assert max(map(len, source.splitlines())) <= 110


@pytest.mark.parametrize(
    "script",
    [
        "examples/tensor_parallel.py:tensor_parallel",
        "examples/mixed_layers.py:mixed_layers",
        "examples/recompute.py:all_but_the_last_layer",
    ],
)
def test_example_scripts_are_short_verified_and_equal_to_eager(script):
    from superscaler.ir.trace import trace
    from superscaler.model_reference import load_script

    path = Path(__file__).parents[2] / script.partition(":")[0]
    code = [line for line in path.read_text().split('"""')[-1].splitlines() if line.strip()]
    assert len(code) < 25
    torch.manual_seed(0)
    model = gpt.build("tiny", width=32, seq=16, vocab=64).double()
    inputs = gpt.example_inputs("tiny", batch=8, width=32, seq=16, vocab=64)
    graph = trace(model, inputs, optimizer=OPTIMIZER)
    devices = 3 if "mixed" in script else 2
    plan = compiler.plan(
        graph, Cluster.local(devices), load_script(str(path) + ":" + script.partition(":")[2])
    )
    assert plan.verify().compare_with_eager(model, inputs).largest < 1e-11
