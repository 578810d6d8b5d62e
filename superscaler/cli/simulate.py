"""``superscaler simulate``: what a step takes, on a cluster that need not be here."""

import argparse
import json
from pathlib import Path
from typing import Any

from superscaler.cli.model_options import add_model, make_plan
from superscaler.cli.terminal import print_json, progress, write_text

_SUMMARY = "predict a step's time and memory on a cluster that need not be here"


def add_command(commands: Any) -> None:
    """Add the command and its options."""
    parser = commands.add_parser("simulate", help=_SUMMARY, description=_SUMMARY)
    add_model(parser, "model")
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="write what happens when, for Perfetto or chrome://tracing"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from superscaler.simulator.trace_events import trace_events

    plan = make_plan(options, deferred=True)
    with progress("simulating"):
        simulation = plan.simulate()
    if options.trace:
        write_text(options.trace, json.dumps(trace_events(simulation)))
    if options.json:
        print_json({**_described(plan), **_simulated(simulation)})
        return
    print(f"plan {plan.name!r} on {plan.num_devices} devices of {plan.cluster.name}")
    print(simulation)


def _described(plan: Any) -> dict[str, Any]:
    return {"plan": plan.name, "devices": plan.num_devices, "cluster": plan.cluster.name}


def _simulated(simulation: Any) -> dict[str, Any]:
    return {
        "step_seconds": simulation.step_seconds,
        "mfu": simulation.mfu,
        "bubble": simulation.bubble,
        "fits": simulation.fits,
        "rows": [
            {
                "title": row.title,
                "devices": list(row.devices),
                "computing_seconds": row.computing,
                "exposed_seconds": row.exposed,
                "waiting_seconds": row.waiting,
                "memory_bytes": row.memory.total,
                "memory_limit_bytes": row.memory_limit,
            }
            for row in simulation.rows
        ],
    }
