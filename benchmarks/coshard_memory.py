"""Peak memory of co-shard beside recomputation and tensor parallelism, on a Swin at high resolution.

What each plan predicts, by liveness over its programs, against what its generated program holds at most while it runs
a step: the bytes of all tensors alive (`benchmarks.memory_watch`), or what the CUDA allocator says. Every plan starts
from the same weights and must have the same loss. Goal: the prediction is within 5 % wherever a plan saves memory.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.report import finish, parse_arguments
from models import swin
from superscaler import compiler
from superscaler.codegen.memory import peak_memory
from superscaler.ir.optimizers import AdamW
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import parse_plan

PLANS = (
    "none", "recompute", "tp=2", "tp=2,recompute", "co_shard=2", "co_shard=4", "co_shard=8", "co_shard=2,recompute",
    "co_shard=4,recompute", "co_shard=8,recompute", "tp=2,co_shard=4,recompute",
)  # fmt: skip
QUICK = ("none", "recompute", "tp=2", "co_shard=2", "co_shard=8", "co_shard=8,recompute")
CLOSE = 0.05


def main() -> None:
    """Compile all plans, run them, and compare."""
    options = parse_arguments(__doc__ or "")
    plans = QUICK if options.quick else PLANS
    overrides: dict[str, Any] = {"image": 256, "depths": (2, 2)} if options.quick else {}
    steps = 1 if options.quick else 3
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        predicted = _compile(folder, plans, overrides)
        measured: dict[str, Any] = {}
        for devices in sorted({parse_plan(plan).num_devices for plan in plans}):
            chosen = [plan for plan in plans if parse_plan(plan).num_devices == devices]
            measured |= _run(folder, chosen, devices, steps)
    rows = [
        {
            "plan": plan,
            "devices": parse_plan(plan).num_devices,
            "predicted_mib": predicted[plan] / 2**20,
            "measured_mib": measured[plan]["bytes"] / 2**20,
            "predicted/measured": predicted[plan] / measured[plan]["bytes"],
            "of_plain": measured[plan]["bytes"] / measured["none"]["bytes"],
            "seconds": measured[plan]["seconds"],
            "loss": measured[plan]["loss"],
        }
        for plan in plans
    ]
    ratios = {row["plan"]: row["predicted/measured"] for row in rows}
    saving = {row["plan"]: row["of_plain"] for row in rows}
    losses = [row["loss"] for row in rows]
    is_same = max(losses) - min(losses) <= 1e-4 * abs(losses[0])
    is_close = all(abs(ratio - 1) <= CLOSE for ratio in ratios.values())
    finish(
        "coshard_memory", is_same and is_close, rows, options.quick,
        ratio_lowest=min(ratios.values()), ratio_highest=max(ratios.values()), recompute=saving["recompute"],
        tp2=saving["tp=2"], co_shard8=saving["co_shard=8"], co_shard8_recompute=saving["co_shard=8,recompute"],
        device="cuda" if torch.cuda.is_available() else "cpu",
    )  # fmt: skip


def _compile(folder: Path, plans: tuple[str, ...], overrides: dict[str, Any]) -> dict[str, int]:
    """Write a build per plan, the weights and a batch; the bytes each plan predicts of its fullest device."""
    torch.manual_seed(0)
    model, batch = swin.build("bench", **overrides), swin.example_inputs("bench", batch=1, **overrides)
    save_file(batch, folder / "data.safetensors")
    save_file(dict(model.state_dict()), folder / "weights.safetensors")
    graph = trace(model, batch, optimizer=AdamW(lr=1e-4))
    predicted = {}
    for plan in plans:
        compiled = compiler.plan(graph, Cluster.local(parse_plan(plan).num_devices), plan).verify()
        compiled.save(folder / plan)
        predicted[plan] = max(peak_memory(program).total for program in compiled.programs)
    return predicted


def _run(folder: Path, plans: list[str], devices: int, steps: int) -> dict[str, Any]:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}", "-m",
        "benchmarks.coshard_memory_rank", str(folder), str(steps), *plans,
    ]  # fmt: skip
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return json.loads((folder / "measured.json").read_text())


if __name__ == "__main__":
    main()
