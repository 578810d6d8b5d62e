"""Throughput beside the peers: the generated step and PyTorch's own parallelism on one Llama, on two processes.

Under torchrun with gloo, one thread per process, float32, AdamW. Both contenders live in the same processes, start from
the same weights, see the same batch, and take turns in blocks of steps; their losses must agree. ``ratio`` is the
peer's median time over ours, so that above 1 ours is faster; beside it the quartiles of the ratios of neighbouring
blocks. Each row is measured as it is, and with what layers compute going through `torch.compile` on both sides: ours
with ``--compile``, a peer's with ``block.compile()`` of each layer; where torch cannot compile its own parallelism, the
peer is as it is, and the row says why. Goal: 1.0 in every row.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.peers import PEERS
from benchmarks.report import finish, parse_arguments
from models import llama
from superscaler import compiler
from superscaler.ir.optimizers import AdamW
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster

BATCH = 8
TOLERANCE = 1e-5
"""Largest relative difference of losses."""
OPTIONS = {"lr": 3e-4}
QUICK_COMPILED = ("dp",)
SMALL = {"layers": 2, "width": 256, "heads": 4, "kv_heads": 2, "inner": 704, "vocab": 1024}


def main() -> None:
    """Compile the plans, start the processes, and compare."""
    options = parse_arguments(__doc__ or "")
    settings = {
        "rows": [(name, False) for name in PEERS]
        + [(name, True) for name in (QUICK_COMPILED if options.quick else PEERS)],
        "overrides": SMALL if options.quick else {},
        "optimizer": OPTIONS,
        "blocks": 8 if options.quick else 12,
        "steps": 2 if options.quick else 1,
    }
    with tempfile.TemporaryDirectory() as folder:
        _prepare(Path(folder), settings)
        _torchrun(Path(folder))
        measured = json.loads((Path(folder) / "measured.json").read_text())
    rows = [
        _row(name, is_compiled, own)
        for (name, is_compiled), own in zip(settings["rows"], measured, strict=True)
    ]
    ok = all(row["ratio"] >= 1.0 and row["losses"] <= TOLERANCE for row in rows)
    figures = {row["row"] + "_compiled" * row["compiled"]: row["ratio"] for row in rows}
    finish("peers_train", ok, rows, options.quick, **figures)


def _prepare(folder: Path, settings: dict[str, Any]) -> None:
    """A build per plan, the weights all start from and one batch."""
    torch.manual_seed(0)
    model = llama.build("bench", **settings["overrides"])
    batch = llama.example_inputs("bench", batch=BATCH, **settings["overrides"])
    save_file(model.state_dict(), folder / "weights.safetensors")
    save_file(batch, folder / "data.safetensors")
    (folder / "settings.json").write_text(json.dumps(settings))
    graph = trace(model, batch, optimizer=AdamW(**settings["optimizer"]))
    for name in PEERS:
        compiler.plan(graph, Cluster.local(2), PEERS[name].plan).verify().save(folder / name)


def _torchrun(folder: Path) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        "-m", "benchmarks.peers_rank", str(folder),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"torchrun failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def _row(name: str, is_compiled: bool, measured: dict[str, Any]) -> dict[str, Any]:
    ours, peer = measured["seconds"]["ours"], measured["seconds"]["peer"]
    low, _, high = quantiles((b / a for a, b in zip(ours, peer, strict=True)), n=4)
    pairs = zip(measured["losses"]["ours"], measured["losses"]["peer"], strict=True)
    return {
        "row": name,
        "plan": PEERS[name].plan,
        "peer": PEERS[name].name,
        "compiled": is_compiled,
        "peer compiled": is_compiled and not measured["why_not"],
        "ours_ms": 1e3 * median(ours),
        "peer_ms": 1e3 * median(peer),
        "ratio": median(peer) / median(ours),
        "quartiles": f"{low:.3f}-{high:.3f}",
        "losses": max(abs(a - b) / abs(b) for a, b in pairs),
        "why not": measured["why_not"],
    }


if __name__ == "__main__":
    main()
