"""Ranks: the processes of a build find one another, each with its device."""

import os
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from superscaler.errors import BuildError
from superscaler.runtime.build import Build
from superscaler.runtime.host_memory import keep_freed_memory


def check_world(build: Build) -> int:
    """This process's rank, once it is clear that the right number of processes was started.

    Raises:
        BuildError: It was not.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == build.world_size:
        return int(os.environ.get("RANK", "0"))
    raise BuildError(
        f"plan {build.plan!r} of {build.name} needs {build.world_size} processes, but {world_size} "
        f"{'was' if world_size == 1 else 'were'} started",
        remedy=f"torchrun --nproc-per-node {build.world_size} {relative(build.folder / build.entry)}"
        "  (over several machines: with --nnodes and fewer per node)",
    )


def choose_device(backend: str) -> torch.device:
    """The device of this process: with gloo the CPU, else the GPU of its local rank.

    Raises:
        BuildError: There is no such GPU.
    """
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


def join_ranks(build: Build, rank: int, backend: str, timeout: float) -> None:
    """Join the other ranks, once all turn out to run the same build with the same torch.

    Raises:
        BuildError: They do not.
    """
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


def meet() -> None:
    """Return once every rank of the plan is here."""
    if dist.is_initialized():
        dist.barrier()


def leave() -> None:
    """Let go of the other ranks."""
    if dist.is_initialized():
        dist.destroy_process_group()


def relative(path: Path) -> str:
    """A path as messages show it."""
    return os.path.relpath(path)
