"""Session: what the entry script of a build has at hand on one rank, and how it starts and fails."""

import argparse
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from superscaler.errors import BuildError, SuperscalerError
from superscaler.runtime.build import Build, RowProgram, read_build
from superscaler.runtime.communication import Runtime
from superscaler.runtime.ranks import check_world, choose_device, join_ranks, relative
from superscaler.runtime.weights import load_weights

DATA_FILE = "data.safetensors"


@dataclass
class Session:
    """One rank, joined with the others, its program and tensors loaded."""

    build: Build
    rank: int
    device: torch.device
    runtime: Runtime
    module: Any
    """Its program."""
    weights: dict[str, Tensor]
    states: dict[str, Tensor]
    steps: int
    """Training steps the weights have seen."""
    data: Path
    """The data set."""


def run_entry(
    file: str,
    arguments: Sequence[str] | None,
    parser: Callable[[Path], argparse.ArgumentParser],
    work: Callable[[Session, argparse.Namespace], None],
) -> None:
    """What an entry script does with its own ``__file__``: read options, open a session, and `work`.

    Any error is printed once, with this rank and the place, and ends the process at once with exit code 1,
    whatever threads and communicators are still waiting.
    """
    entry = Path(file).resolve()
    options = parser(entry).parse_args(arguments)
    try:
        work(_open(entry.parent, options), options)
    except (Exception, KeyboardInterrupt) as error:
        _report(error, entry)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def _open(folder: Path, options: argparse.Namespace) -> Session:
    build = read_build(folder, allow_edited=options.allow_edited)
    rank = check_world(build)
    if options.threads:
        torch.set_num_threads(options.threads)
    backend = options.backend or ("nccl" if torch.cuda.is_available() else "gloo")
    device = choose_device(backend)
    if build.world_size > 1:
        join_ranks(build, rank, backend, options.timeout)
    runtime = make_runtime(build, rank, device, options.timeout)
    module = load_module(folder, build.program_of(rank))
    start = load_weights(options.weights, build, rank, device, options.seed)
    if rank == 0:
        for note in start.notes:
            print(f"note: {note}", flush=True)  # noqa: T201
    data = Path(options.data) if options.data else _default_data(folder)
    return Session(build, rank, device, runtime, module, start.weights, start.states, start.step, data)


def make_runtime(build: Build, rank: int, device: torch.device, timeout: float = 600.0) -> Runtime:
    """What the program of a rank communicates with."""
    return Runtime(
        rank,
        build.stages,
        device,
        messages=build.messages,
        exchanges=build.exchanges,
        sizes=build.sizes,
        timeout=timeout,
    )


def load_module(folder: Path, program: RowProgram) -> Any:
    """Import a program from a build folder."""
    path = folder / f"{program.module}.py"
    specification = importlib.util.spec_from_file_location(program.module, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def _default_data(folder: Path) -> Path:
    path = folder / DATA_FILE
    if not path.is_file():
        raise BuildError(
            f"no data: neither --data nor {relative(path)}",
            remedy="give a .safetensors file with one tensor per input of the model, one sample per row",
        )
    return path


def _report(error: BaseException, entry: Path) -> None:
    """Print what happened, on which rank, and where in the generated program."""
    rank = os.environ.get("RANK", "0")
    lines = [f"superscaler: rank {rank}: {type(error).__name__}: {error}"]
    frames = traceback.extract_tb(error.__traceback__)
    program = [f for f in frames if Path(f.filename).parent == entry.parent and Path(f.filename) != entry]
    if program:
        frame = program[-1]
        lines.append(
            f"  in the program: {relative(Path(frame.filename))}:{frame.lineno}, {frame.name}: {frame.line}"
        )
    if not isinstance(error, SuperscalerError | KeyboardInterrupt):
        lines.extend(traceback.format_tb(error.__traceback__))
    print("\n".join(lines), file=sys.stderr)  # noqa: T201


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """The options every entry script has."""
    add = parser.add_argument
    add(
        "--data",
        metavar="FILE",
        help="data set: .safetensors, one tensor per input (default: data.safetensors here)",
    )
    add("--weights", metavar="PATH", help=".safetensors file or folder to start from (default: that of the"
        " build, else the model's own initialisation); optimizer states in it are taken up too")  # fmt: skip
    add("--seed", type=int, default=0, help="seed of the initialisation (default 0)")
    add(
        "--timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="longest wait for another rank (default 300)",
    )
    add("--allow-edited", action="store_true", help="run although stage files were edited after compiling")
    add("--backend", choices=["gloo", "nccl"], help="gloo for CPUs, nccl for GPUs (default: what is there)")
    add("--threads", type=positive, help="CPU threads per process (default: torch's)")


def positive(text: str) -> int:
    """A whole number from 1, as an option's value."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return value
