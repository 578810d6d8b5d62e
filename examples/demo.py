"""The main job, start to end: a GPT cut over two processes trains on real text with the losses it has on one.

    python examples/demo.py [--plan dp=2] [--steps 20]

Compiles and verifies the tiny GPT, trains it under torchrun, trains the same model in plain PyTorch in this
process, shows both side by side, and writes a page that shows who computed what and when.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.parity import BATCH, OPTIMIZER, build_model, run_eager, torchrun
from models import gpt, text
from superscaler import compiler
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import parse_plan


def main() -> None:
    """Compile, verify, run, compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plan", default="tp=2", help="any plan string (default tp=2)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("-o", "--output", type=Path, default=Path("build/demo"))
    options = parser.parse_args()
    devices = parse_plan(options.plan).num_devices
    options.output.mkdir(parents=True, exist_ok=True)
    data, build = options.output / "text.safetensors", options.output / "gpt"
    samples = text.write_dataset(data, seq=64)
    print(f"data     {samples} samples of 64 bytes from Python's own documentation: {data}")

    plan = compiler.compile(
        build_model("float32"),
        gpt.example_inputs("tiny", batch=BATCH),
        cluster=Cluster.local(devices),
        plan=options.plan,
        optimizer=OPTIMIZER,
        save=build,
    )
    print(f"verified {plan.name!r}: complete, race-free, deadlock-free, within memory\n\n{plan}\n")

    start = time.perf_counter()
    parallel, _ = torchrun(build, devices, data, options.steps)
    seconds = time.perf_counter() - start
    single, _ = run_eager(data, "float32", BATCH, options.steps)
    worst = max(abs(a - b) for a, b in zip(parallel, single, strict=True))
    rows = {
        "plan": options.plan,
        "devices": f"{devices} processes (gloo)",
        "loss on one device": f"{single[0]:.6f} -> {single[-1]:.6f} after {options.steps} steps",
        "loss in parallel": f"{parallel[0]:.6f} -> {parallel[-1]:.6f}",
        "largest difference": f"{worst:.2e}",
        "tokens/s": f"{BATCH * 64 * options.steps / seconds:.0f} (start of the processes included)",
        "generated program": ", ".join(str(path) for path in sorted(build.glob("stage*.py"))),
    }
    page = build / "report.html"
    page.write_text(plan.page(), encoding="utf-8")
    rows["who computes what, when"] = f"{page}: open it in a browser"
    width = max(map(len, rows))
    print("\n".join(f"{key:<{width}}  {value}" for key, value in rows.items()))
    if worst > 1e-4:
        sys.exit(f"the losses differ by {worst:.2e}: this must not be")


if __name__ == "__main__":
    main()
