"""Runs that stop under one plan and go on under another, on other numbers of devices, against runs that never stopped.

A tiny GPT in double precision with dropout, AdamW, clipping and a dynamic loss scale, under real torchrun (gloo). Each
plan saves a training checkpoint after half the steps, and each other plan takes every one of them to the end. Goal: all
losses, those before the checkpoint among them, within 1e-10 of those of one device that never stopped; under the plan
of the checkpoint itself, losses, parameters and optimizer states bit for bit those of that plan.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.report import finish, parse_arguments
from models import gpt, text
from superscaler import compiler
from superscaler.ir.loss_scale import LossScale
from superscaler.ir.optimizers import AdamW
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import parse_plan

PLANS = (
    "none", "dp=2", "dp=3", "tp=2,sp", "pp=2,schedule=1f1b,micro_batches=2", "dp=2,zero=3",
    "dp=2,tp=2,zero=1", "dp=2,pp=2,zero=2,micro_batches=2", "dp=2,zero=1,offload=optimizer",
)  # fmt: skip
QUICK_SAVED = ("dp=2,zero=3",)
QUICK_RESUMED = ("none", "dp=3", "tp=2,sp", "pp=2,schedule=1f1b,micro_batches=2", "dp=2,zero=3")
SIZES = {"layers": 2, "width": 24, "heads": 6, "vocab": 128, "seq": 8}
BATCH, STEPS, SAVED_AT = 12, 10, 5
CLOSE = 1e-10


@dataclass(frozen=True)
class Outcome:
    """What a run comes to."""

    losses: list[float]
    tensors: dict[str, torch.Tensor]
    """Parameters and optimizer states."""


def main() -> None:
    """Compile all plans, save under some, resume under others."""
    options = parse_arguments(__doc__ or "")
    saved, resumed = (QUICK_SAVED, QUICK_RESUMED) if options.quick else (PLANS, PLANS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _compile(folder, dict.fromkeys((*saved, *resumed)))
        never_stopped = {plan: _train(folder, plan) for plan in dict.fromkeys(("none", *saved))}
        rows = [row for plan in saved for row in _rows(folder, plan, resumed, never_stopped)]
    same = [row for row in rows if row["saved under"] == row["resumed under"]]
    identical = sum(row["identical"] == "yes" for row in same)
    worst = max(row["largest difference"] for row in rows)
    finish(
        "resume_matrix", worst <= CLOSE and identical == len(same), rows, options.quick,
        resumed=len(rows), worst=worst, same_plan=len(same), identical=identical,
    )  # fmt: skip


def _compile(folder: Path, plans: Any) -> None:
    text.write_dataset(folder / "data.safetensors", SIZES["seq"], SIZES["vocab"])
    torch.manual_seed(0)
    model = gpt.build("tiny", **SIZES, dropout=0.1).double()
    graph = trace(
        model, gpt.example_inputs("tiny", batch=BATCH, **SIZES),
        optimizer=AdamW(lr=3e-3, clip_norm=1.0), loss_scale=LossScale(init=8.0, interval=3),
    )  # fmt: skip
    for plan in plans:
        devices = parse_plan(plan).num_devices
        compiler.plan(graph, Cluster.local(devices), plan).verify().save(folder / plan)


def _rows(
    folder: Path, saved: str, resumed: tuple[str, ...], never_stopped: dict[str, Outcome]
) -> list[dict[str, Any]]:
    """Save under one plan, and resume under each."""
    run = folder / "run"
    _train(folder, saved, f"--steps={SAVED_AT}", f"--checkpoint={run}")
    rows = []
    for plan in resumed:
        copy = shutil.copytree(run, folder / "copy")
        found = _train(folder, plan, f"--checkpoint={copy}", "--resume")
        shutil.rmtree(copy)
        is_same = _are_identical(found, never_stopped[saved]) if plan == saved else None
        rows.append(
            {
                "saved under": saved,
                "resumed under": plan,
                "largest difference": _difference(found, never_stopped["none"]),
                "identical": {None: "", True: "yes", False: "no"}[is_same],
            }
        )
    shutil.rmtree(run)
    return rows


def _train(folder: Path, plan: str, *options: str) -> Outcome:
    losses, saved = folder / "losses.json", folder / "saved.safetensors"
    devices = parse_plan(plan).num_devices
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}"]
    command = [
        sys.executable, *(torchrun if devices > 1 else ()), str(folder / plan / "train.py"), "--backend=gloo",
        f"--steps={STEPS}", f"--data={folder / 'data.safetensors'}", f"--losses={losses}", f"--save={saved}",
        "--save-state", *options,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
    if done.returncode:
        raise RuntimeError(f"{plan} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return Outcome(json.loads(losses.read_text()), load_file(saved))


def _are_identical(a: Outcome, b: Outcome) -> bool:
    equal = all(torch.equal(value, b.tensors[name]) for name, value in a.tensors.items())
    return a.losses == b.losses and a.tensors.keys() == b.tensors.keys() and equal


def _difference(a: Outcome, b: Outcome) -> float:
    """Of losses of one step, relative to the second."""
    return max(abs(x - y) / abs(y) for x, y in zip(a.losses, b.losses, strict=True))


if __name__ == "__main__":
    main()
