"""Plans against eager PyTorch: losses and final parameters, under real torchrun and in the virtual cluster.

Under torchrun (gloo): 20 AdamW steps of the tiny GPT on real text, in float32 and float64, against eager PyTorch with
``torch.optim.AdamW`` in one process. In the virtual cluster: 30 further combinations on 2 to 16 devices, 2 steps in
float64. Goal: losses, and every final parameter, within 1e-5 (float32) and 1e-12 (float64) relative, where a tensor's
relative difference is |a - b| / |b| in the Euclidean norm. Beside it stands the largest difference of one element,
relative to the tensor's largest: Adam divides by the gradient's own size, so where a gradient is nearly
zero (some 1e-8) its rounding error becomes a visible step of that element, in any two ways of summing.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.report import finish, parse_arguments
from models import gpt, text
from superscaler import compiler
from superscaler.ir.optimizers import AdamW
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import parse_plan

TORCHRUN = (
    "dp=2",
    "tp=2",
    "pp=2",
    "dp=2,zero=1",
    "dp=2,tp=2",
    "tp=2,sp",
    "dp=2,tp=2,pp=2,schedule=1f1b,micro_batches=4",
)
VIRTUAL = (
    "dp=4", "dp=8", "dp=3", "dp=16", "tp=4", "tp=3", "pp=4", "pp=3",
    "dp=4,zero=1", "dp=8,zero=1", "tp=4,sp", "tp=3,sp",
    "dp=2,micro_batches=2", "tp=2,micro_batches=4", "dp=2,zero=1,micro_batches=2", "tp=2,sp,micro_batches=2",
    "pp=2,schedule=gpipe,micro_batches=4", "pp=2,schedule=1f1b,micro_batches=4", "pp=4,micro_batches=8",
    "dp=2,tp=4", "dp=4,tp=2", "dp=4,tp=4", "dp=2,tp=2,zero=1", "dp=2,tp=2,sp", "dp=2,tp=2,sp,zero=1",
    "dp=2,pp=2,zero=1,micro_batches=2", "tp=2,pp=2,sp,micro_batches=4", "dp=2,pp=4,micro_batches=4",
    "tp=2,pp=4,sp,micro_batches=2", "dp=2,tp=2,pp=2,sp,zero=1,micro_batches=4",
    "dp=2,tp=2,pp=4,schedule=1f1b,micro_batches=8", "dp=2,tp=2,pp=4,schedule=gpipe,micro_batches=2",
)  # fmt: skip
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
BATCH, STEPS = 16, 20
OPTIMIZER = AdamW(lr=3e-4)


def main() -> None:
    """Run both parts."""
    options = parse_arguments(__doc__ or "")
    dtypes = ("float64",) if options.quick else ("float32", "float64")
    plans = TORCHRUN[1:5:3] if options.quick else TORCHRUN
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "text.safetensors"
        text.write_dataset(data, seq=64)
        for dtype in dtypes:
            truth = run_eager(data, dtype, BATCH, STEPS)
            rows += [_torchrun_row(Path(folder), data, plan, dtype, truth) for plan in plans]
    rows += [_virtual_row(plan) for plan in (VIRTUAL[::6] if options.quick else VIRTUAL)]
    failed = [row for row in rows if not row["ok"]]
    worst = {
        f"worst_{dtype}": max(max(row["loss"], row["parameters"]) for row in rows if row["dtype"] == dtype)
        for dtype in dtypes
    }
    finish("parity", not failed, rows, options.quick, plans=len(rows), failed=len(failed), **worst)


def run_eager(data: Path, dtype: str, batch: int, steps: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and final parameters of plain PyTorch; the truth every plan is held against."""
    model = build_model(dtype)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        OPTIMIZER.lr,
        (OPTIMIZER.beta1, OPTIMIZER.beta2),
        OPTIMIZER.eps,
        OPTIMIZER.weight_decay,
    )
    samples, losses = load_file(data), []
    for step in range(steps):
        rows = torch.arange(step * batch, (step + 1) * batch) % len(samples["tokens"])
        optimizer.zero_grad()
        loss = model(**{name: values[rows] for name, values in samples.items()})
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, {name: value.detach() for name, value in model.named_parameters()}


def build_model(dtype: str) -> gpt.GPT:
    """The tiny GPT with the same values every time."""
    torch.manual_seed(0)
    return gpt.build("tiny").to(getattr(torch, dtype))


def _torchrun_row(folder: Path, data: Path, plan: str, dtype: str, truth: Any) -> dict[str, Any]:
    build = folder / f"{dtype}-{plan}"
    devices = parse_plan(plan).num_devices
    inputs = gpt.example_inputs("tiny", batch=BATCH)
    compiler.compile(
        build_model(dtype), inputs, cluster=Cluster.local(devices), plan=plan, optimizer=OPTIMIZER, save=build
    )
    start = time.perf_counter()
    losses, parameters = torchrun(build, devices, data, STEPS)
    return _row(plan, dtype, devices, "torchrun", losses, parameters, truth, time.perf_counter() - start)


def torchrun(
    build: Path, devices: int, data: Path, steps: int
) -> tuple[list[float], Mapping[str, torch.Tensor]]:
    """Train a build with real processes; its losses and final parameters."""
    losses, saved = build / "losses.json", build / "saved.safetensors"
    command = [
        sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={devices}", f"--master-port={free_port()}",
        str(build / "train.py"), f"--steps={steps}", f"--data={data}", f"--losses={losses}", f"--save={saved}",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"torchrun failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(losses.read_text()), load_file(saved)


def free_port() -> int:
    """Of this machine, on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _row(
    plan: str, dtype: str, devices: int, how: str, losses: list[float], parameters: Mapping[str, torch.Tensor],
    truth: tuple[list[float], dict[str, torch.Tensor]], seconds: float,
) -> dict[str, Any]:  # fmt: skip
    loss = max(abs(a - b) / abs(b) for a, b in zip(losses, truth[0], strict=True))
    assert set(parameters) == set(truth[1])
    pairs = [(parameters[name].double(), value.double()) for name, value in truth[1].items()]
    difference = max(((ours - value).norm() / value.norm()).item() for ours, value in pairs)
    element = max(((ours - value).abs().max() / value.abs().max()).item() for ours, value in pairs)
    ok = max(loss, difference) <= TOLERANCE[dtype]
    return {
        "plan": plan, "devices": devices, "run": how, "dtype": dtype, "loss": loss, "parameters": difference,
        "element": element, "seconds": seconds, "ok": ok,
    }  # fmt: skip


def _virtual_row(text_: str) -> dict[str, Any]:
    devices = parse_plan(text_).num_devices
    model = build_model("float64")
    inputs = gpt.example_inputs("tiny", batch=BATCH)
    start = time.perf_counter()
    made = compiler.plan(trace(model, inputs, optimizer=OPTIMIZER), Cluster.local(devices), text_).verify()
    found = made.compare_with_eager(model, inputs, steps=2)
    worst = max(found.gradients, found.parameters)
    return {
        "plan": text_, "devices": devices, "run": "virtual", "dtype": "float64", "loss": found.loss,
        "parameters": worst, "element": worst, "seconds": time.perf_counter() - start,
        "ok": max(found.loss, worst) <= 1e-12,
    }  # fmt: skip


if __name__ == "__main__":
    main()
