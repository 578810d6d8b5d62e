"""What ``torchrun train.py`` does: join the other ranks, load its program, weights and data, and train."""

import argparse
import importlib.util
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from superscaler.errors import BuildError, SuperscalerError
from superscaler.runtime.build import Build, StageProgram, read_build
from superscaler.runtime.communication import Runtime
from superscaler.runtime.data import Batches
from superscaler.runtime.host_memory import keep_freed_memory
from superscaler.runtime.weights import load_weights, make_weights, save_weights, zero_states

WEIGHTS_FILE = "weights.safetensors"
DATA_FILE = "data.safetensors"


def main(file: str, arguments: Sequence[str] | None = None) -> None:
    """Run the build folder `file` lies in; its ``train.py`` calls this with its own ``__file__``.

    Any error is printed once, with this rank and the place, and ends the process at once with exit code 1,
    whatever threads and communicators are still waiting.
    """
    folder = Path(file).resolve().parent
    options = _parser(folder).parse_args(arguments)
    try:
        _run(folder, options)
    except (Exception, KeyboardInterrupt) as error:
        _report(error, folder)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def _run(folder: Path, options: argparse.Namespace) -> None:
    build = read_build(folder, allow_edited=options.allow_edited)
    rank = _check_world(build, folder)
    if options.threads:
        torch.set_num_threads(options.threads)
    backend = options.backend or ("nccl" if torch.cuda.is_available() else "gloo")
    device = _device(backend)
    if build.world_size > 1:
        _join(build, rank, backend, options.timeout)
    stage = build.stage_of(rank)
    meshes = [program.mesh for program in build.stages]
    runtime = Runtime(rank, meshes, device, exchanges=build.exchanges, timeout=options.timeout)
    module = load_module(folder, stage)
    p, state, steps_seen = _load_tensors(build, rank, device, options)
    batches = Batches(options.data or _default_data(folder), build, rank, device)
    with torch.no_grad():
        _train(build, module, p, state, batches, runtime, options, steps_seen)
    runtime.finish()
    if options.save:
        steps = steps_seen + options.steps
        save_weights(
            options.save, build, rank, {**p, **state}, _meet, step=steps, with_states=options.save_state
        )  # fmt: skip
    if build.world_size > 1:
        dist.destroy_process_group()


def _train(
    build: Build, module: Any, p: dict, state: dict, batches: Batches, runtime: Runtime,
    options: argparse.Namespace, steps_seen: int,
) -> None:  # fmt: skip
    is_reporter = runtime.rank == build.stages[build.loss_stage].mesh.devices[0]
    tokens = _elements_per_step(build)
    losses: list[Tensor | float] = []
    since, last = time.perf_counter(), 0
    for step in range(1, options.steps + 1):
        number = steps_seen + step
        outputs = module.train_step(p, state, batches.micro_batches(number - 1), number, runtime)
        if not is_reporter or "loss" not in outputs:
            continue
        losses.append(outputs["loss"].detach().clone())
        if step % options.log_every == 0 or step == options.steps:
            loss = float(losses[-1])
            seconds = (time.perf_counter() - since) / (step - last)
            line = f"step {step}/{options.steps}  loss {loss:.4f}  {tokens / seconds:.0f} tokens/s"
            print(line, flush=True)  # noqa: T201
            since, last = time.perf_counter(), step
    if is_reporter and options.losses:
        Path(options.losses).write_text(json.dumps([float(loss) for loss in losses]) + "\n")


def _elements_per_step(build: Build) -> int:
    _, shape = next(iter(build.inputs.values()))
    return torch.Size(shape).numel()


def _check_world(build: Build, folder: Path) -> int:
    """This process's rank, once it is clear that the right number of processes was started."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == build.world_size:
        return int(os.environ.get("RANK", "0"))
    raise BuildError(
        f"plan {build.plan!r} of {build.name} needs {build.world_size} processes, but {world_size} "
        f"{'was' if world_size == 1 else 'were'} started",
        remedy=f"torchrun --nproc-per-node {build.world_size} {_relative(folder / 'train.py')}"
        "  (over several machines: with --nnodes and fewer per node)",
    )


def _device(backend: str) -> torch.device:
    if backend == "gloo":
        keep_freed_memory()
        return torch.device("cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if local_rank >= torch.cuda.device_count():
        raise BuildError(
            f"backend {backend} wants a GPU per process: there is none for local rank {local_rank} "
            f"({torch.cuda.device_count()} seen)",
            remedy="start fewer processes per node, or run on CPUs with --backend gloo",
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _join(build: Build, rank: int, backend: str, timeout: float) -> None:
    """Join the other ranks, once all turn out to run the same build with the same torch."""
    limit = timedelta(seconds=timeout)
    store, rank, world_size = next(rendezvous("env://", rank, build.world_size, timeout=limit))
    store.set_timeout(limit)
    own = f"build {build.fingerprint[:16]}, torch {torch.__version__}"
    if rank == 0:
        store.set("superscaler/build", own)
    first = store.get("superscaler/build").decode()
    if first != own:
        raise BuildError(
            f"rank {rank} has {own}, but rank 0 has {first}",
            remedy="copy the same build folder to every machine, and install one version of torch",
        )
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=limit)


def load_module(folder: Path, stage: StageProgram) -> Any:
    """Import the program of a stage from a build folder."""
    path = folder / f"{stage.module}.py"
    specification = importlib.util.spec_from_file_location(stage.module, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def _load_tensors(
    build: Build, rank: int, device: torch.device, options: argparse.Namespace
) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Weights, optimizer states, and the number of steps they have seen."""
    path = options.weights
    if path is None and (build.folder / WEIGHTS_FILE).is_file():
        path = build.folder / WEIGHTS_FILE
    if path is not None:
        return load_weights(path, build, rank, device)
    return make_weights(build, rank, device, options.seed), zero_states(build, rank, device), 0


def _default_data(folder: Path) -> Path:
    path = folder / DATA_FILE
    if not path.is_file():
        raise BuildError(
            f"no data: neither --data nor {_relative(path)}",
            remedy="give a .safetensors file with one tensor per input of the model, one sample per row",
        )
    return path


def _report(error: BaseException, folder: Path) -> None:
    """Print what happened, on which rank, and where in the generated program."""
    rank = os.environ.get("RANK", "0")
    lines = [f"superscaler: rank {rank}: {type(error).__name__}: {error}"]
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).parent == folder
    ]
    program = [frame for frame in frames if Path(frame.filename).name != "train.py"]
    if program:
        frame = program[-1]
        lines.append(
            f"  in the program: {_relative(Path(frame.filename))}:{frame.lineno}, {frame.name}: {frame.line}"
        )
    if not isinstance(error, SuperscalerError | KeyboardInterrupt):
        lines.extend(traceback.format_tb(error.__traceback__))
    print("\n".join(lines), file=sys.stderr)  # noqa: T201


def _relative(path: Path) -> str:
    return os.path.relpath(path)


def _meet() -> None:
    """Return once every rank of the plan is here."""
    if dist.is_initialized():
        dist.barrier()


def _parser(folder: Path) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_relative(folder / "train.py"),
        description="Train the model this folder was compiled from. Start it with torchrun.",
    )
    add = parser.add_argument
    add("--steps", type=_positive, default=10, help="training steps to run (default 10)")
    add(
        "--data",
        metavar="FILE",
        help="data set: .safetensors, one tensor per input (default: data.safetensors here)",
    )
    add("--weights", metavar="PATH", help=".safetensors file or folder to start from (default: that of the"
        " build, else the model's own initialisation); optimizer states in it are taken up too")  # fmt: skip
    add("--seed", type=int, default=0, help="seed of the initialisation (default 0)")
    add(
        "--save",
        metavar="PATH",
        help="write the trained weights to this .safetensors file, on a shared file system",
    )
    add("--save-state", action="store_true", help="with --save: write the optimizer states too")
    add(
        "--log-every",
        type=_positive,
        default=1,
        metavar="STEPS",
        help="print every so many steps (default 1)",
    )
    add("--losses", metavar="PATH", help="write the losses of all steps to this file, as a JSON list")
    add(
        "--timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="longest wait for another rank (default 300)",
    )
    add("--allow-edited", action="store_true", help="run although stage files were edited after compiling")
    add("--backend", choices=["gloo", "nccl"], help="gloo for CPUs, nccl for GPUs (default: what is there)")
    add("--threads", type=_positive, help="CPU threads per process (default: torch's)")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return value
