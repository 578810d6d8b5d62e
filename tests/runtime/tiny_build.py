"""A build folder written by hand: ``mean((x @ w.T + b - y)**2)``, SGD with momentum, two micro-batches.

`w` is cut over dp as by ZeRO-3: gathered before use, its gradient reduce-scattered, its update local.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

STAGE = """
import os
import signal

import torch
import torch.nn.functional as F

from superscaler.runtime import ops


def train_step(p, state, micro_batches, step, rt):
    dp = rt.axis("dp")
    if os.environ.get("DIE_AT") == str(step) and rt.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    w = rt.all_gather(p["w"], dp, 0)
    dw, db, loss = torch.zeros_like(w), torch.zeros_like(p["b"]), torch.zeros((), dtype=w.dtype)
    for batch in micro_batches:
        difference = F.linear(batch["x"], w, p["b"]) - batch["y"]
        loss += difference.square().sum() / 32
        dy = difference * (2 / 32)
        dw += ops.linear_weight_gradient(dy, batch["x"])
        db += ops.linear_bias_gradient(dy)
    dw = rt.reduce_scatter(dw, dp, 0)
    rt.all_reduce([db, loss], dp)
    buffers = [state["w/momentum"], state["b/momentum"]]
    ops.sgd_([p["w"], p["b"]], [dw, db], buffers, step, lr=0.1, momentum=0.9)
    return {"loss": loss}
"""
TRAIN = "from superscaler.runtime.launch import main\n\nmain(__file__)\n"


def stored(role: str, shape: list[int], cuts: list[list[str]]) -> dict[str, Any]:
    fine = [[size] for size in shape]
    return {
        "role": role,
        "stage": 0,
        "dtype": "float64",
        "shape": shape,
        "fine": fine,
        "cuts": cuts,
        "pieces": [None] * len(cuts),
    }


def make_plan(world_size: int = 2) -> dict[str, Any]:
    tensors = {
        "x": stored("input", [8, 6], [["mb", "dp"], []]),
        "y": stored("input", [8, 4], [["mb", "dp"], []]),
        "w": stored("parameter", [4, 6], [["dp"], []]),
        "b": stored("parameter", [4], [[]]),
        "w/momentum": stored("state", [4, 6], [["dp"], []]),
        "b/momentum": stored("state", [4], [[]]),
    }
    mesh = {"devices": list(range(world_size)), "axes": [["dp", world_size]], "chunk": 0}
    program = {"module": "stage0", "devices": mesh["devices"], "stages": [0], "tensors": tensors}
    return {
        "format": 2,
        "name": "tiny",
        "plan": f"dp={world_size}",
        "world_size": world_size,
        "micro_batches": 2,
        "superscaler": "0.1.0",
        "torch": "2.13.0",
        "files": {"stage0.py": hashlib.sha256(STAGE.encode()).hexdigest()},
        "inputs": {"x": {"dtype": "float64", "shape": [8, 6]}, "y": {"dtype": "float64", "shape": [8, 4]}},
        "stages": [mesh],
        "programs": [program],
        "loss_row": 0,
        "messages": [],
        "initialisers": {"w": [["normal_", 0.0, 0.5]], "b": [["fill_", 0.0]]},
        "exchanges": {},
    }


def write_build(folder: Path, world_size: int = 2) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(json.dumps(make_plan(world_size)))
    (folder / "stage0.py").write_text(STAGE)
    (folder / "train.py").write_text(TRAIN)
    generator = torch.Generator().manual_seed(3)
    data = {n: torch.randn(20, s, dtype=torch.float64, generator=generator) for n, s in (("x", 6), ("y", 4))}
    save_file(data, folder / "data.safetensors")
    return folder
