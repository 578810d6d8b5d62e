"""Builds that read `tokens` and `targets` [8, 6] under several plans, and what each rank must see of them."""

import json
from typing import Any

import torch
from torch import Tensor

from superscaler.ir.tensor import Role
from superscaler.runtime.build import Build, read_build
from superscaler.runtime.data import Batches
from tests.runtime.tiny_build import make_plan, write_build

BATCH, LENGTH = 8, 6
CPU = torch.device("cpu")
INPUTS = {"tokens": (torch.int64, (BATCH, LENGTH)), "targets": (torch.int64, (BATCH, LENGTH))}

# plan -> axes of a stage, micro-batches, how rows and places are cut, and which inputs each stage reads
PLANS = {
    "one": ({}, 1, [[], []], [["tokens", "targets"]]),
    "dp=2,micro_batches=2": ({"dp": 2}, 2, [["mb", "dp"], []], [["tokens", "targets"]]),
    "dp=3": ({"dp": 3}, 1, [["dp"], []], [["tokens", "targets"]]),
    "cp=2,dp=2": ({"dp": 2, "cp": 2}, 1, [["dp"], ["cp"]], [["tokens", "targets"]]),
    "cp=4,micro_batches=4": ({"cp": 4}, 4, [["mb"], ["cp"]], [["tokens", "targets"]]),
    "pp=3,dp=2": ({"dp": 2}, 2, [["mb", "dp"], []], [["tokens"], [], ["targets"]]),
    "tp=2,pp=2": ({"tp": 2}, 4, [["mb"], []], [["tokens"], ["tokens", "targets"]]),
}


def make_build(folder, plan: str) -> Build:
    axes, micro_batches, cuts, stages = PLANS[plan]
    per_stage = torch.Size(axes.values()).numel()
    meshes = [
        {"devices": list(range(s * per_stage, (s + 1) * per_stage)), "axes": list(axes.items()), "chunk": 0}
        for s in range(len(stages))
    ]
    programs = [
        {
            "module": "stage0", "devices": mesh["devices"], "stages": [number],
            "tensors": {f"{name}_{number}": _stored(name, number, cuts) for name in names},
        }
        for number, (mesh, names) in enumerate(zip(meshes, stages, strict=True))
    ]  # fmt: skip
    described = {
        **make_plan(), "plan": plan, "world_size": per_stage * len(stages), "micro_batches": micro_batches,
        "stages": meshes, "programs": programs, "loss_row": len(stages) - 1, "initialisers": {},
        "inputs": {name: {"dtype": "int64", "shape": list(shape)} for name, (_, shape) in INPUTS.items()},
    }  # fmt: skip
    write_build(folder)
    (folder / "plan.json").write_text(json.dumps(described))
    return read_build(folder)


def _stored(name: str, stage: int, cuts: list[list[str]]) -> dict[str, Any]:
    return {
        "role": "input", "stage": stage, "dtype": "int64", "shape": [BATCH, LENGTH], "source": name,
        "fine": [[BATCH], [3, 2]], "cuts": [cuts[0], [], cuts[1]] if cuts[1] == ["cp"] else [cuts[0], cuts[1], []],
        "pieces": [None] * 3,
    }  # fmt: skip


def numbered(samples: int) -> dict[str, Tensor]:
    """A data set in which every value says where it lies."""
    tokens = torch.arange(samples * LENGTH).view(samples, LENGTH)
    return {"tokens": tokens, "targets": -tokens - 1}


def rank_batches(data, build: Build, **options) -> list[Batches]:
    """One per rank; `data` is called for each, as each is a process of its own."""
    return [Batches(data(), build, rank, CPU, **options) for rank in range(build.world_size)]


def check_step(ranks: list[Batches], build: Build, step: int, expected: dict[str, Tensor]) -> None:
    """All ranks see their parts of the batch `expected`, and together all of it."""
    check_pieces([batches.micro_batches(step) for batches in ranks], build, expected)


def check_pieces(given: list[list[dict[str, Tensor]]], build: Build, expected: dict[str, Tensor]) -> None:
    seen = {name: torch.zeros(BATCH, 3, 2, dtype=torch.bool) for name in expected}
    for rank, micro_batches in enumerate(given):
        assert len(micro_batches) == build.micro_batches
        tensors = {tensor.name: tensor for tensor in build.program_of(rank).with_role(Role.INPUT)}
        for number, micro_batch in enumerate(micro_batches):
            assert micro_batch.keys() == tensors.keys()
            for name, tensor in tensors.items():
                box = tuple(slice(*interval) for interval in tensor.region(rank, number).intervals)
                part = expected[tensor.source].view(BATCH, 3, 2)[box]
                assert torch.equal(micro_batch[name], part.reshape(tensor.local_shape(rank, number)))
                assert micro_batch[name].is_contiguous()
                seen[tensor.source][box] = True
    assert all(places.all() for places in seen.values())
