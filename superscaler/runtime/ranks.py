"""Ranks: the processes of a build find one another, each with its device."""

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.rendezvous import rendezvous

from superscaler.errors import BuildError
from superscaler.runtime.build import Build
from superscaler.runtime.host_memory import keep_freed_memory
from superscaler.runtime.meeting import meet_in

Result = TypeVar("Result")


def check_world(build: Build, script: Path | str = "") -> int:
    """This process's rank, once it is clear that the right number of processes was started.

    Args:
        build: What they run.
        script: What torchrun starts, as the remedy names it; by default the entry script of the build.

    Raises:
        BuildError: It was not.
    """
    if dist.is_initialized():
        rank, world_size = dist.get_rank(), dist.get_world_size()
    else:
        rank, world_size = (int(os.environ.get(*one)) for one in (("RANK", "0"), ("WORLD_SIZE", "1")))
    if world_size == build.world_size:
        return rank
    raise BuildError(
        f"plan {build.plan!r} of {build.name} needs {build.world_size} "
        f"process{'' if build.world_size == 1 else 'es'}, but {world_size} "
        f"{'was' if world_size == 1 else 'were'} started",
        remedy=f"torchrun --nproc-per-node {build.world_size} {script or relative(build.folder / build.entry)}"
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


def join_ranks(build: Build, rank: int, backend: str, timeout: float) -> Any:
    """Join the other ranks, once all turn out to run the same build with the same torch; the store all share.

    Raises:
        BuildError: They do not.
        CommunicationError: Not all have come in time.
    """
    limit = timedelta(seconds=timeout)
    store, rank, world_size = next(rendezvous("env://", rank, build.world_size, timeout=limit))
    store.set_timeout(limit)
    identity = f"build {build.fingerprint[:16]}, torch {torch.__version__}"
    store = meet_in(store, rank, world_size, identity, timeout)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=limit)
    return store


def default_store() -> Any:
    """The store of the default process group, which all ranks share."""
    return dist.distributed_c10d._get_default_store()


def meet() -> None:
    """Return once every rank of the plan is here."""
    if dist.is_initialized():
        dist.barrier()


def group_of_all(timeout: float) -> Any:
    """A gloo group of all ranks, beside those that programs communicate with; every rank calls this.

    Args:
        timeout: Longest wait of one communication, in seconds.
    """
    limit = timedelta(seconds=timeout)
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1, timeout=limit)
    return dist.new_group(backend="gloo", timeout=limit)


def from_first(group: Any, function: Callable[[], Result]) -> Result:
    """What a function returns on rank 0, on every rank; or the error it raises there."""
    outcome: list[Any] = [None]
    if dist.get_rank(group) == 0:
        try:
            outcome = [(True, function())]
        except Exception as error:
            outcome = [(False, error)]
    dist.broadcast_object_list(outcome, src=0, group=group)
    is_done, result = outcome[0]
    if not is_done:
        raise result
    return result


def served_devices() -> dict[str, str]:
    """Type of device -> the backend by which the default process group serves it."""
    pairs = (pair.partition(":") for pair in str(dist.get_backend_config()).split(","))
    return {device: backend for device, _, backend in pairs}


def leave() -> None:
    """Let go of the other ranks."""
    if dist.is_initialized():
        dist.destroy_process_group()


def relative(path: Path) -> str:
    """A path as messages show it."""
    return os.path.relpath(path)
