"""``superscaler profile``: this machine is measured, and becomes a cluster file."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from superscaler.cli.model_options import add_model, make_plan
from superscaler.cli.terminal import print_json, progress
from superscaler.errors import ProfileError

_SUMMARY = "measure this machine's operators and collectives, and write a cluster file"


def add_command(commands: Any) -> None:
    """Add the command and its options."""
    parser = commands.add_parser("profile", help=_SUMMARY, description=_SUMMARY)
    parser.add_argument("-o", "--output", required=True, type=Path, help="the .yaml file to write")
    parser.add_argument("--devices", type=int, default=1, help="measured at the same time (default 1)")
    parser.add_argument("--backend", choices=("gloo", "nccl"), help="of CPUs or GPUs (default GPUs if any)")
    parser.add_argument("--quick", action="store_true", help="fewer sizes, shorter measurements")
    parser.add_argument(
        "--database",
        type=Path,
        metavar="FILE",
        help="times of single calls, added to what is there (default profile.json in the folder SUPERSCALER_CACHE "
        "names, else beside the output)",
    )
    add_model(parser, "--model")
    parser.set_defaults(run=_run, cluster="")


def _run(options: argparse.Namespace) -> None:
    from superscaler.profiling.profile import profile

    if options.devices < 1 or options.output.suffix not in (".yaml", ".yml"):
        raise ProfileError(
            f"{options.devices} devices cannot be measured into {options.output}",
            remedy="write superscaler profile --devices 2 -o mine.yaml",
        )
    cache = os.environ.get("SUPERSCALER_CACHE")
    database = options.database or Path(cache or options.output.parent) / "profile.json"
    with _explained(options.output):  # before minutes are spent on measuring
        for file in (options.output, database):
            file.parent.mkdir(parents=True, exist_ok=True)
    options.cluster = options.cluster or f"local:{options.devices}"
    plan = make_plan(options, deferred=True) if options.model else None
    with progress("measuring"):
        measured = profile(options.devices, options.backend or "", quick=options.quick, model=plan)
    with _explained(options.output):
        measured.save(options.output, database)
    if options.json:
        print_json({"cluster": str(options.output), "database": str(database), **_measured(measured)})
        return
    print(
        f"{measured}\n{options.output}: use it as --cluster {options.output}; times of calls are in {database}"
    )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ProfileError(
            f"cannot write {path} and its database: {error}",
            remedy="name files in folders that can be written",
        ) from error


def _measured(measured: Any) -> dict[str, Any]:
    (nodes,) = measured.cluster.nodes
    return {
        "device": nodes.device.name,
        "devices": nodes.num_devices,
        "flops_per_second": dict(nodes.device.flops_per_second),
        "memory_bytes_per_second": nodes.device.memory_bandwidth,
        "link_bytes_per_second": nodes.link.bandwidth,
        "calls": len(measured.database.seconds),
        "not_measured": list(measured.not_measured),
        "curve_error": measured.curve_error,
    }
