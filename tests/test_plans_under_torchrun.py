"""Builds of plans that change where sequences and experts lie train under torchrun as eager PyTorch does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models import gpt, llama, moe
from superscaler import compiler
from superscaler.ir.optimizers import AdamW
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import parse_plan

pytestmark = pytest.mark.ranks

ROOT = Path(__file__).parents[1]
LLAMA = {"layers": 2, "width": 16, "heads": 4, "kv_heads": 2, "inner": 24, "seq": 12, "vocab": 32}
GPT = {"layers": 2, "width": 15, "heads": 3, "seq": 8, "vocab": 32}
"""What is 15 wide cannot be cut in two: its gradient stays whole where others are scattered."""
STEPS = 3


def train_eagerly(model, inputs):
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, (0.9, 0.95), 1e-5, 0.0)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = model(**inputs)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def torchrun(build, data, ranks):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    options = [
        f"--steps={STEPS}",
        f"--data={data}",
        "--losses",
        build / "losses.json",
        "--save",
        build / "saved.safetensors",
    ]
    done = subprocess.run(
        [*command, build / "train.py", *options, "--backend", "gloo", "--threads", "1"],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((build / "losses.json").read_text()), load_file(build / "saved.safetensors")


@pytest.mark.parametrize(
    ("made", "sizes", "plan"),
    [
        (llama, LLAMA, "cp=3"),
        (llama, LLAMA, "dp=2,zero=1,offload=optimizer"),
        (llama, LLAMA, "dp=2,offload=activations"),
        (llama, LLAMA, "dp=2,zero=3,micro_batches=2,offload=optimizer+activations+parameters"),
        (gpt, GPT, "pp=2,micro_batches=2,offload=parameters"),
        (llama, LLAMA, "dp=2,micro_batches=2"),
        (llama, LLAMA, "dp=2,zero=1,pp=2,micro_batches=2"),
        (gpt, GPT, "dp=2,zero=2,micro_batches=2"),
        (llama, LLAMA, "pp=2,schedule=zb-h1,micro_batches=2,recompute=selective,offload=activations"),
        (moe, {}, "ep=2,dp=2"),
    ],
)
def test_losses_and_parameters_are_those_of_eager_pytorch(made, sizes, plan, tmp_path):
    torch.manual_seed(0)
    model, inputs = made.build("tiny", **sizes).double(), made.example_inputs("tiny", batch=4, **sizes)
    save_file(inputs, tmp_path / "data.safetensors")
    ranks = parse_plan(plan).num_devices
    compiler.compile(
        model,
        inputs,
        cluster=Cluster.local(ranks),
        plan=plan,
        optimizer=AdamW(lr=1e-3, beta1=0.9, beta2=0.95, eps=1e-5, weight_decay=0.0),
        save=tmp_path / "build",
    )
    losses, parameters = torchrun(tmp_path / "build", tmp_path / "data.safetensors", ranks)
    assert losses == pytest.approx(train_eagerly(model, inputs), rel=1e-12)
    for name, value in model.named_parameters():
        torch.testing.assert_close(parameters[name], value.detach(), rtol=1e-9, atol=1e-11)
