"""Measuring collectives: each, by size and number of members, among the ranks of this machine."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from superscaler.planner.transport import Collective
from superscaler.profiling.timing import BATCHES, finish


@dataclass(frozen=True, slots=True)
class CollectiveTime:
    """What one collective took."""

    collective: Collective
    num_bytes: int
    """Of the larger of what a member has before and after."""
    members: int
    seconds: float


def measure_collectives(device: torch.device, sizes: tuple[int, ...], runs: int) -> list[CollectiveTime]:
    """Measure on all ranks together; every rank gets the times of the slowest."""
    found = []
    for members in _group_sizes(dist.get_world_size()):
        group = dist.new_group(list(range(members)))
        for collective in Collective:
            if collective is Collective.SEND and members > 2:
                continue
            for num_bytes in sizes:
                seconds = 0.0
                if dist.get_rank() < members:
                    call = _call(collective, num_bytes, members, device, group)
                    seconds = _seconds(call, device, group, runs)
                slowest = torch.tensor([seconds], device=device)
                dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
                found.append(CollectiveTime(collective, num_bytes, members, slowest.item()))
    return found


def _group_sizes(world_size: int) -> list[int]:
    """Powers of two, and all ranks."""
    return sorted(
        {*(2**i for i in range(1, world_size.bit_length()) if 2**i <= world_size), world_size} - {1}
    )


def _call(
    collective: Collective, num_bytes: int, members: int, device: torch.device, group: Any
) -> Callable[[], Any]:
    count = max(members, num_bytes // 4 // members * members)
    whole = torch.ones(count, device=device)
    piece = torch.ones(count // members, device=device)
    rank = dist.get_rank()
    return {
        Collective.ALL_REDUCE: lambda: dist.all_reduce(whole, group=group),
        Collective.ALL_GATHER: lambda: dist.all_gather_into_tensor(whole, piece, group=group),
        Collective.REDUCE_SCATTER: lambda: dist.reduce_scatter_tensor(piece, whole, group=group),
        Collective.ALL_TO_ALL: lambda: dist.all_to_all_single(whole.clone(), whole, group=group),
        Collective.BROADCAST: lambda: dist.broadcast(whole, 0, group=group),
        Collective.SEND: lambda: dist.send(whole, 1 - rank) if rank == 0 else dist.recv(whole, 0),
    }[collective]


def _seconds(call: Callable[[], Any], device: torch.device, group: Any, runs: int) -> float:
    """Of one run; the median of batches, so that what else the machine does counts little."""
    call()
    return median(_seconds_of_runs(call, device, group, runs) / runs for _ in range(BATCHES))


def _seconds_of_runs(call: Callable[[], Any], device: torch.device, group: Any, runs: int) -> float:
    finish(device)
    dist.barrier(group)
    start = time.perf_counter()
    for _ in range(runs):
        call()
    finish(device)
    # a sender may be done before its last message has arrived
    dist.barrier(group)
    return time.perf_counter() - start
