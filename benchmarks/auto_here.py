"""The automatic plan beside all others on this machine: what two processes really take for every plan string.

The machine is profiled first; `auto` chooses a plan for two processes by that profile, and plans of all kinds, with
stages of equal work, are then run under torchrun with gloo, one thread per process, in turns. Goal: the chosen plan is
the fastest, or within 5 % of it.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.report import finish, parse_arguments
from models import llama
from superscaler import compiler
from superscaler.ir.optimizers import AdamW
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster

SIZES = {"layers": 8, "width": 256, "heads": 8, "kv_heads": 4, "inner": 704, "vocab": 2048, "seq": 256}
BATCH, DEVICES = 8, 2
CLOSE = 1.05
ROUNDS, QUICK_ROUNDS = 7, 3
QUICK = ("dp=2", "dp=2,zero=3", "tp=2", "tp=2,sp", "pp=2,schedule=1f1b,micro_batches=4")


def main() -> None:
    """Profile, choose, run all, and compare."""
    options = parse_arguments(__doc__ or "")
    torch.manual_seed(0)
    model, batch = llama.build("bench", **SIZES), llama.example_inputs("bench", batch=BATCH, **SIZES)
    graph = trace(model, batch, optimizer=AdamW())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cluster = _profiled(folder, options.quick)
        chosen = compiler.plan(graph, cluster, "auto")
        assert chosen.report is not None
        plans = {text: compiler.plan(graph, cluster, text) for text in _plans(options.quick)}
        plans[chosen.name] = chosen
        save_file(batch, folder / "data.safetensors")
        save_file(dict(model.state_dict()), folder / "weights.safetensors")
        for text, plan in plans.items():
            plan.verify().save(folder / text)
        measured = _run(folder, list(plans), QUICK_ROUNDS if options.quick else ROUNDS)
    rows = [_row(text, plan.simulate().step_seconds, measured[text]) for text, plan in plans.items()]
    rows.sort(key=lambda row: row["seconds"])
    ratio = median(measured[chosen.name]) / rows[0]["seconds"]
    for row in rows:
        row["chosen"] = "<-- auto" if row["plan"] == chosen.name else ""
    print(chosen.report)
    finish("auto_here", ratio <= CLOSE, rows, options.quick, plans=len(rows), ratio=ratio, chosen=chosen.name)


def _plans(quick: bool) -> Iterator[str]:
    if quick:
        yield from QUICK
        return
    for micro_batches in (1, 2, 4):
        cut = f",micro_batches={micro_batches}" if micro_batches > 1 else ""
        for words in (
            "dp=2",
            "dp=2,zero=1",
            "dp=2,zero=2",
            "dp=2,zero=3",
            "tp=2",
            "tp=2,sp",
            "dp=2,recompute=layers",
        ):
            yield words + cut
    for schedule in ("1f1b", "interleaved", "zb-h1", "zb-v"):
        for micro_batches in (2, 4, 8):
            if schedule != "zb-v" or micro_batches >= 4:
                yield f"pp=2,schedule={schedule},micro_batches={micro_batches}"


def _profiled(folder: Path, quick: bool) -> Cluster:
    command = [
        sys.executable, "-m", "superscaler.cli", "profile", "--devices", str(DEVICES), "-o", str(folder / "here.yaml"),
        *(["--quick"] if quick else []),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return Cluster.load(folder / "here.yaml")


def _run(folder: Path, plans: list[str], rounds: int) -> dict[str, list[float]]:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={DEVICES}",
        "-m", "benchmarks.auto_here_rank", str(folder), str(rounds), *plans,
    ]  # fmt: skip
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return json.loads((folder / "measured.json").read_text())


def _row(text: str, simulated: float, seconds: list[float]) -> dict[str, Any]:
    taken = median(seconds)
    return {
        "plan": text,
        "seconds": taken,
        "least": min(seconds),
        "simulated": simulated,
        "simulated/measured": simulated / taken,
    }


if __name__ == "__main__":
    main()
