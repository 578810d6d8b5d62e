"""GPT-3 175B from ``nn.Module`` to files, for 64 and for 1,024 devices: seconds and memory of the compiler.

The model is in bfloat16, its batch one sample per replica and micro-batch; the proof includes that every device's 80
GiB suffice. Goal: 1,024 devices in under 120 s and 6 GiB, and less than 1.5 times what 64 devices take. Nothing is
executed. Each compilation is a process of its own, so that its peak memory is its own.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.report import finish, parse_arguments

SECONDS, MEMORY_BYTES, RATIO = 120.0, 6 * 2**30, 1.5


def main() -> None:
    """Compile for both sizes and compare."""
    if len(sys.argv) > 1 and sys.argv[1] == "compile":
        _compile(*sys.argv[2:])
        return
    options = parse_arguments(__doc__ or "")
    size, repeats = ("gpt3-175b", 1) if options.quick else ("gpt3-175b", 3)
    plans = {64: "dp=1,tp=8,pp=8,micro_batches=16", 1024: "dp=16,tp=8,pp=8,micro_batches=16"}
    runs: dict[int, list[dict[str, Any]]] = {devices: [] for devices in plans}
    for _ in range(repeats):
        for devices, plan in plans.items():
            runs[devices].append(_in_process(size, plan, devices))
    rows = [_row(devices, plans[devices], results) for devices, results in runs.items()]
    total = {row["devices"]: row["total_seconds"] for row in rows}
    ratio = total[1024] / total[64]
    peak = max(row["peak_gib"] for row in rows)
    ok = total[1024] < SECONDS and peak * 2**30 < MEMORY_BYTES and ratio < RATIO
    finish("compile_scale", ok, rows, options.quick, seconds_1024=total[1024], ratio=ratio, peak_gib=peak)


def _row(devices: int, plan: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    keys = ("trace", "plan", "lower", "verify", "emit", "total")
    seconds = {f"{key}_seconds": median(result[key] for result in results) for key in keys}
    peak = max(result["peak_bytes"] for result in results) / 2**30
    last = results[-1]
    return {
        "devices": devices,
        "plan": plan,
        **seconds,
        "peak_gib": peak,
        "files": last["files"],
        "lines": last["lines"],
    }


def _in_process(size: str, plan: str, devices: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "benchmarks.compile_scale",
            "compile",
            size,
            plan,
            str(devices),
            folder,
        ]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def _compile(size: str, plan: str, devices: str, folder: str) -> None:
    import torch

    from models import gpt
    from superscaler import compiler
    from superscaler.ir.deferred import deferred_init, initialisers
    from superscaler.ir.optimizers import AdamW
    from superscaler.ir.trace import trace
    from superscaler.planner.cluster import Cluster
    from superscaler.planner.recipes import parse_plan

    laps: dict[str, float] = {}
    start = last = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal last
        now = time.perf_counter()
        laps[name], last = now - last, now

    torch.set_default_dtype(torch.bfloat16)
    options = parse_plan(plan)
    with deferred_init():
        model, inputs = gpt.build(size), gpt.example_inputs(size, batch=options.dp * options.micro_batches)
    graph = trace(model, inputs, optimizer=AdamW(), initialisers=initialisers(model))
    lap("trace")
    made = compiler.plan(graph, Cluster.preset("dgx-a100", int(devices) // 8), plan)
    lap("plan")
    _ = made.programs
    lap("lower")
    made.verify()
    lap("verify")
    build = made.save(Path(folder) / "build")
    lap("emit")
    sources = list(build.glob("*.py"))
    lines = sum(len(path.read_text().splitlines()) for path in sources)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    total = time.perf_counter() - start
    print(json.dumps({**laps, "total": total, "peak_bytes": peak, "files": len(sources), "lines": lines}))


if __name__ == "__main__":
    main()
