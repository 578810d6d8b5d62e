"""Memory runs: what plans predict of their memory, and what their generated programs hold while they run a step."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from superscaler import compiler
from superscaler.codegen.memory import peak_memory
from superscaler.codegen.program import Program
from superscaler.ir.optimizers import AdamW
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import parse_plan


def memory_rows(
    model: nn.Module, batch: Mapping[str, Tensor], plans: Sequence[str], steps: int
) -> list[dict[str, Any]]:
    """A row per plan: bytes predicted and measured of the fullest device, seconds per step, and the first loss.

    Args:
        model: Trained with AdamW; every plan starts from its weights.
        batch: The global batch of every step.
        plans: Plan strings, for any numbers of devices.
        steps: Of which to take the time.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        predicted = _compile(folder, model, batch, plans)
        measured: dict[str, Any] = {}
        for devices in sorted({parse_plan(plan).num_devices for plan in plans}):
            chosen = [plan for plan in plans if parse_plan(plan).num_devices == devices]
            measured |= _run(folder, chosen, devices, steps)
    return [
        {
            "plan": plan,
            "devices": parse_plan(plan).num_devices,
            "predicted_mib": predicted[plan] / 2**20,
            "measured_mib": measured[plan]["bytes"] / 2**20,
            "predicted/measured": predicted[plan] / measured[plan]["bytes"],
            "seconds": measured[plan]["seconds"],
            "loss": measured[plan]["loss"],
        }
        for plan in plans
    ]


def losses_agree(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all plans compute the same loss, but for rounding in single precision."""
    losses = [row["loss"] for row in rows]
    return max(losses) - min(losses) <= 1e-4 * abs(losses[0])


def _compile(
    folder: Path, model: nn.Module, batch: Mapping[str, Tensor], plans: Sequence[str]
) -> dict[str, int]:
    """Write a build per plan, the weights and a batch; the bytes each plan predicts of its fullest device."""
    save_file(dict(batch), folder / "data.safetensors")
    save_file(dict(model.state_dict()), folder / "weights.safetensors")
    graph = trace(model, dict(batch), optimizer=AdamW(lr=1e-4))
    predicted = {}
    for plan in plans:
        compiled = compiler.plan(graph, Cluster.local(parse_plan(plan).num_devices), plan).verify()
        compiled.save(folder / plan)
        predicted[plan] = max(map(_bytes, compiled.programs))
    return predicted


def _bytes(program: Program) -> int:
    """Of the fullest moment; without a GPU, host memory is the device's."""
    use = peak_memory(program)
    return use.total if torch.cuda.is_available() else use.total + use.host


def _run(folder: Path, plans: Sequence[str], devices: int, steps: int) -> dict[str, Any]:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}", "-m",
        "benchmarks.memory_rank", str(folder), str(steps), *plans,
    ]  # fmt: skip
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return json.loads((folder / "measured.json").read_text())


def device_type() -> str:
    """Which allocator was asked."""
    return "cuda" if torch.cuda.is_available() else "cpu"
