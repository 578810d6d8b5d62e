"""``superscaler check``: a plan is proved right, and run against eager PyTorch."""

import argparse
from typing import Any

from superscaler.cli.model_options import add_model, make_model, make_plan
from superscaler.cli.terminal import print_json, progress
from superscaler.runtime.option_values import positive

_SUMMARY = "prove a plan right, and run it against eager PyTorch in one process"


def add_command(commands: Any) -> None:
    """Add the command and its options."""
    parser = commands.add_parser("check", help=_SUMMARY, description=_SUMMARY)
    add_model(parser, "model")
    parser.add_argument("--static", action="store_true", help="only the proof; nothing is executed")
    parser.add_argument("--steps", type=positive, default=2, help="training steps to compare (default 2)")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    model = None if options.static else make_model(options)
    plan = make_plan(options, model, deferred=options.static)
    with progress("verifying"):
        plan.verify()
    comparison = None
    if model is not None:
        with progress("comparing with eager PyTorch"):
            comparison = plan.compare_with_eager(*model, steps=options.steps)
    if options.json:
        print_json({"plan": plan.name, "devices": plan.num_devices, "proved": True, **_compared(comparison)})
        return
    print(f"plan {plan.name!r}: proved complete, race-free, deadlock-free and within memory")
    if comparison is not None:
        print(comparison)


def _compared(comparison: Any) -> dict[str, Any]:
    if comparison is None:
        return {"compared_with": None, "steps": 0, "differences": {}, "worst": None}
    kinds = ("loss", "gradients", "parameters", "replicas")
    return {
        "compared_with": comparison.reference,
        "steps": comparison.steps,
        "differences": {kind: getattr(comparison, kind) for kind in kinds},
        "worst": comparison.worst,
    }
