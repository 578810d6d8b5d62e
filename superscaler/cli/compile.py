"""``superscaler compile``: a model and a plan become a build folder."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from superscaler.cli.model_options import add_model, make_plan
from superscaler.cli.terminal import print_json, progress
from superscaler.codegen.plan_file import entry_name
from superscaler.planner.float8 import describe_float8

_SUMMARY = "model and plan -> a build folder that torchrun runs"


def add_command(commands: Any) -> None:
    """Add the command and its options."""
    parser = commands.add_parser("compile", help=_SUMMARY, description=_SUMMARY)
    add_model(parser, "model")
    parser.add_argument("-o", "--output", required=True, type=Path, help="the build folder to write")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    plan = make_plan(options, deferred=True)
    with progress("verifying"):
        plan.verify()
    with progress("writing"):
        how = {"arguments": options.words, "cluster": options.cluster, "folder": os.getcwd()}
        folder = plan.save(options.output, options.model, {"compiled_with": how})
    for line in describe_float8(plan.graph):
        print(line, file=sys.stderr if options.json else sys.stdout)
    launch = ["torchrun", "--nproc-per-node", str(plan.num_devices), f"{folder}/{entry_name(plan)}"]
    if options.json:
        print_json(
            {
                "folder": str(folder),
                "plan": plan.name,
                "devices": plan.num_devices,
                "launch": launch,
                "programs": sorted(str(path) for path in folder.glob("stage*.py")),
            }
        )
        return
    print(f"{folder}: plan {plan.name!r} for {plan.num_devices} device(s), verified; run it with")
    arguments = "--steps 20" if plan.graph.is_training else "--out OUTPUTS.safetensors"
    print(f"  {' '.join(launch)} {arguments} --data FILE.safetensors")
    if plan.num_devices > plan.cluster.devices_per_node:
        print(f"or, on several machines, as this says:\n  superscaler launch {folder}")
