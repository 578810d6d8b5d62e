"""Elastic: training goes on with the devices that are left, under a plan that is made for them.

torchrun starts the remaining processes anew when some are lost for good (``--nnodes MIN:MAX``). A build for another
number of processes lies in ``elastic/NUMBER`` of the build folder. One that is not there is compiled by the first rank,
in a process of its own, as the build itself was, with another plan.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from superscaler.errors import BuildError
from superscaler.runtime.build import Build, read_build
from superscaler.runtime.ranks import relative

LONGEST_COMPILATION = 1800.0
"""Seconds after which a build that is not there is given up."""
FOLDER = "elastic"
_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"


def add_elastic_options(parser: argparse.ArgumentParser) -> None:
    """The options that let a run go on with fewer or more processes."""
    add = parser.add_argument_group("lost and new devices").add_argument
    add(
        "--elastic",
        type=_bounds,
        metavar="MIN:MAX",
        help="go on with any number of processes from MIN to MAX that torchrun starts (--nnodes MIN:MAX), from the "
        f"newest checkpoint, with the build in {FOLDER}/NUMBER, which is compiled if it is not there",
    )
    add(
        "--elastic-plan",
        default="auto",
        metavar="PLAN",
        help="with --elastic: the plan to compile, in which {n} is the number of processes, such as dp={n},zero=1 "
        "(default auto, the fastest)",
    )


def choose_build(folder: Path, options: argparse.Namespace) -> Path:
    """The folder of the build for as many processes as there are: this one, or another for the same model.

    Raises:
        BuildError: Their number is out of bounds, or there is no build for it and it cannot be compiled.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if not options.elastic:
        return folder
    least, most = options.elastic
    _check_restarts(options)
    if not least <= world_size <= most:
        raise BuildError(
            f"{world_size} processes were started, and --elastic allows {least} to {most}",
            remedy="start torchrun with --nnodes MIN:MAX of the same bounds",
        )
    build = read_build(folder, allow_edited=options.allow_edited)
    if build.world_size == world_size:
        return folder
    chosen = folder / FOLDER / str(world_size)
    if not chosen.exists() and os.environ.get("RANK", "0") == "0":
        _compile(build, world_size, options.elastic_plan, chosen)
    _wait_for(chosen)
    return chosen


def _bounds(text: str) -> tuple[int, int]:
    least, _, most = text.partition(":")
    if not (least.isdecimal() and most.isdecimal() and 1 <= int(least) <= int(most)):
        raise argparse.ArgumentTypeError(f"{text!r} is not MIN:MAX, such as 3:4")
    return int(least), int(most)


def _check_restarts(options: argparse.Namespace) -> None:
    if not options.checkpoint or options.resume is None:
        raise BuildError(
            "--elastic goes on from checkpoints, and none are kept",
            remedy="add --checkpoint FOLDER --checkpoint-every STEPS --resume",
        )
    has_agents = int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1
    if has_agents and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise BuildError(
            "torchrun would look for the other processes at an address that may be lost with a machine",
            remedy=f"set {_STORE}=1 for torchrun on all machines",
        )


def _compile(build: Build, world_size: int, plan: str, target: Path) -> None:
    """Compile the same model for another number of devices.

    Raises:
        BuildError: The build does not say how it was compiled, or the compiler refuses.
    """
    how = build.described.get("compiled_with")
    prepare = f"prepare a build for {world_size} devices in {relative(target)}"
    if not how:
        raise BuildError(
            f"the build {relative(build.folder)} was not made by `superscaler compile`, so it cannot be made "
            f"again for {world_size} devices",
            remedy=f"{prepare}: plan.save({str(target)!r})",
        )
    plan = plan.replace("{n}", str(world_size))
    arguments = [
        *how["arguments"],
        *("--cluster", f"{how['cluster']}[:{world_size}]"),
        *("--plan", plan),
        *("--output", str(target)),
    ]
    print(f"note: compiles {relative(target)} for {world_size} processes, plan {plan}", flush=True)  # noqa: T201
    # what torchrun tells its processes is not for this one
    ours = {
        key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    done = subprocess.run(
        [sys.executable, "-m", "superscaler.cli", *arguments],
        cwd=how["folder"], env=ours, capture_output=True, text=True, timeout=LONGEST_COMPILATION, check=False,
    )  # fmt: skip
    if done.returncode:
        raise BuildError(
            f"the model cannot be compiled for {world_size} devices:\n{done.stderr.strip()[-2000:]}",
            remedy=f"choose another --elastic-plan, or {prepare}",
        )


def _wait_for(folder: Path) -> None:
    """Return once the first rank has compiled; a build is there as a whole or not at all."""
    end = time.monotonic() + LONGEST_COMPILATION
    while not folder.exists():
        if time.monotonic() > end:
            raise BuildError(
                f"{relative(folder)} is not there after {LONGEST_COMPILATION:.0f} s",
                remedy="keep the build on a file system that all machines share, or prepare it on each",
            )
        time.sleep(0.2)
