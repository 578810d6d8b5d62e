"""Session: what the entry script of a build has at hand on one rank, and how it starts and fails."""

import argparse
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from superscaler.errors import BuildError, SuperscalerError
from superscaler.runtime.build import Build, RowProgram, read_build
from superscaler.runtime.communication import Runtime
from superscaler.runtime.compiled import compile_program
from superscaler.runtime.data import Source, Stream, open_data
from superscaler.runtime.data.options import add_data_options, token_format
from superscaler.runtime.ops.float8 import check_float8
from superscaler.runtime.option_values import positive
from superscaler.runtime.ranks import check_world, choose_device, join_ranks, leave, relative
from superscaler.runtime.waits import Waits
from superscaler.runtime.watchdog import Watchdog
from superscaler.runtime.weights import Loaded, load_weights

DATA_FILE = "data.safetensors"


@dataclass
class Session:
    """One rank, joined with the others, its program loaded."""

    build: Build
    rank: int
    device: torch.device
    runtime: Runtime
    waits: Waits
    watchdog: Watchdog | None
    """Ends communications that take too long; None of a rank that is alone."""
    module: Any
    """Its program."""
    data: Source | Stream
    """The data set."""

    def close(self) -> None:
        """Let go of the other ranks."""
        if self.watchdog:
            self.watchdog.close()
        leave()


def run_entry(
    file: str,
    arguments: Sequence[str] | None,
    parser: Callable[[Path], argparse.ArgumentParser],
    work: Callable[[Session, argparse.Namespace], None],
    choose: Callable[[Path, argparse.Namespace], Path] = lambda folder, options: folder,
) -> None:
    """What an entry script does with its own ``__file__``: read options, open a session, and `work`.

    `choose` returns the build folder to run, from the one the script lies in. Any error ends the process at once,
    whatever threads and communicators are still waiting.
    """
    entry = Path(file).resolve()
    options = parser(entry).parse_args(arguments)
    with reporting_failures(entry):
        folder = choose(entry.parent, options)
        work(_open(folder, options, options.data or _default_data(entry.parent)), options)


@contextmanager
def reporting_failures(entry: Path) -> Iterator[None]:
    """Print any error once, with this rank and the place, and end the process at once with exit code 1."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        _report(error, entry)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def _open(folder: Path, options: argparse.Namespace, data_set: Path | str) -> Session:
    build = read_build(folder, allow_edited=options.allow_edited)
    rank = check_world(build)
    if options.threads:
        torch.set_num_threads(options.threads)
    backend = options.backend or ("nccl" if torch.cuda.is_available() else "gloo")
    device = choose_device(backend)
    waits, watchdog = Waits(device), None
    if build.world_size > 1:
        store = join_ranks(build, rank, backend, options.timeout)
        watchdog = Watchdog(store, rank, build.world_size, waits, options.timeout, folder)
    runtime = make_runtime(build, rank, device, options.timeout, waits)
    module = load_module(folder, build.program_of(rank))
    if options.compile:
        compile_program(module, runtime)
    data = open_data(data_set, build.inputs, token_format(options))
    return Session(build, rank, device, runtime, waits, watchdog, module, data)


def load_start(session: Session, options: argparse.Namespace) -> Loaded:
    """What this rank starts from, as the options ``--weights`` and ``--seed`` say; rank 0 prints what to know of it."""
    start = load_weights(options.weights, session.build, session.rank, session.device, options.seed)
    if session.rank == 0:
        for note in start.notes:
            print(f"note: {note}", flush=True)  # noqa: T201
    return start


def make_runtime(
    build: Build, rank: int, device: torch.device, timeout: float = 600.0, waits: Waits | None = None
) -> Runtime:
    """What the program of a rank communicates with; `waits` is told of every communication.

    Raises:
        BuildError: The device has not the arithmetic of the build.
    """
    if build.float8:
        check_float8(device)
    return Runtime(
        rank,
        build.stages,
        device,
        messages=build.messages,
        exchanges=build.exchanges,
        sizes=build.sizes,
        timeout=timeout,
        waits=waits,
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
            remedy="give a .safetensors file with one tensor per input of the model, one sample per row, or another "
            "data set: see --help",
        )
    return path


def _report(error: BaseException, entry: Path) -> None:
    """Print what happened, on which rank, and where in the generated program."""
    rank = os.environ.get("RANK", "0")
    lines = [f"superscaler: rank {rank}: {type(error).__name__}: {error}"]
    frames = traceback.extract_tb(error.__traceback__)
    inside = [f for f in frames if Path(f.filename).is_relative_to(entry.parent)]
    program = [f for f in inside if Path(f.filename) != entry]
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
    add_data_options(parser)
    add = parser.add_argument
    add("--weights", metavar="PATH", help=".safetensors file or folder to start from (default: that of the"
        " build, else the model's own initialisation); optimizer states in it are taken up too")  # fmt: skip
    add("--seed", type=int, default=0, help="seed of the initialisation (default 0)")
    add(
        "--timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="longest wait for another rank, after which all end and say where each was (default 300)",
    )
    add(
        "--compile",
        action="store_true",
        help="let what layers compute go through torch.compile; the first step takes longer by that",
    )
    add("--allow-edited", action="store_true", help="run although stage files were edited after compiling")
    add("--backend", choices=["gloo", "nccl"], help="gloo for CPUs, nccl for GPUs (default: what is there)")
    add("--threads", type=positive, help="CPU threads per process (default: torch's)")
