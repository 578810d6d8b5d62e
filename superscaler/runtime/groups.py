"""Process groups: one per line of each mesh axis, two per line of partners across stages, one per exchange.

A rank takes part only in creating the groups it is a member of. All ranks walk their groups in one global
order, so that no circle of ranks waits for one another. torch names a group after its ranks and the number of
groups its process has made, so a rank that is in no group of a kind others have makes one of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from superscaler.ir.mesh import Mesh


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a mesh, as seen from one rank."""

    name: str
    size: int
    coordinate: int
    """Where this rank lies along the axis."""
    ranks: tuple[int, ...]
    """The ranks along the axis that share all other coordinates, in order."""
    group: Any = None
    """Their process group; None where the axis has one device."""


@dataclass(frozen=True, slots=True)
class Groups:
    """Every process group of one rank."""

    axes: Mapping[str, Axis]
    up: Any
    """For messages to a higher stage."""
    down: Any
    """For messages to a lower stage: a communicator that carried both directions could stall."""
    exchanges: Mapping[str, Any]


def create_groups(
    rank: int, stages: Sequence[Mesh], exchanges: Mapping[str, Sequence[int]], timeout: timedelta
) -> Groups:
    """Create the groups of `rank`; every rank of the plan calls this, at the same time.

    Args:
        rank: This process.
        stages: The mesh of each stage, in order.
        exchanges: The ranks that take part in each exchange.
        timeout: Longest wait of one communication.
    """
    mesh = next(mesh for mesh in stages if rank in mesh.devices)
    coordinates = mesh.coordinates(rank)
    axes = {}
    for number in range(max(len(stage.axes) for stage in stages)):
        name, size = mesh.axes[number] if number < len(mesh.axes) else ("", 1)
        ranks = mesh.group(name, rank) if name else (rank,)
        others = [stage.axes[number][1] for stage in stages if number < len(stage.axes)]
        group = _create(rank, ranks, timeout, is_known=max(others) > 1)
        if name:
            axes[name] = Axis(name, size, coordinates[name], ranks, group)
    partners, is_known = partner_ranks(rank, stages), len(stages) > 1
    up, down = (_create(rank, partners, timeout, is_known=is_known) for _ in ("up", "down"))
    members = {
        name: _create(rank, ranks, timeout, is_known=True) for name, ranks in sorted(exchanges.items())
    }
    return Groups(axes, up, down, members)


def partner_ranks(rank: int, stages: Sequence[Mesh]) -> tuple[int, ...]:
    """The ranks with this rank's index in the mesh of their stage, this one among them."""
    mesh = next(mesh for mesh in stages if rank in mesh.devices)
    index = mesh.devices.index(rank)
    return tuple(sorted(stage.devices[index] for stage in stages if index < len(stage.devices)))


def _create(rank: int, ranks: Sequence[int], timeout: timedelta, *, is_known: bool) -> Any:
    """A group of `ranks`, made by its members alone; None where this rank is none, or the only one.

    Where some rank has a group of this kind (`is_known`), this one makes one in any case, to count alike.
    """
    if rank not in ranks or len(ranks) < 2:
        if is_known and dist.is_initialized():
            dist.new_group([rank], timeout=timeout, use_local_synchronization=True)
        return None
    return dist.new_group(list(ranks), timeout=timeout, use_local_synchronization=True)
