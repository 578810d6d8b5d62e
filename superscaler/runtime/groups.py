"""Process groups: one per line of each mesh axis, two per line of partners across stages, one per exchange.

A rank takes part only in creating the groups it is a member of. All ranks walk their groups in one global
order, so that no circle of ranks waits for one another.
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
    for name, size in mesh.axes:
        ranks = mesh.group(name, rank)
        axes[name] = Axis(name, size, coordinates[name], ranks, _create(rank, ranks, timeout))
    partners = partner_ranks(rank, stages)
    up, down = _create(rank, partners, timeout), _create(rank, partners, timeout)
    members = {name: _create(rank, ranks, timeout) for name, ranks in sorted(exchanges.items())}
    return Groups(axes, up, down, members)


def partner_ranks(rank: int, stages: Sequence[Mesh]) -> tuple[int, ...]:
    """The ranks with this rank's index in the mesh of their stage, this one among them."""
    mesh = next(mesh for mesh in stages if rank in mesh.devices)
    index = mesh.devices.index(rank)
    return tuple(sorted(stage.devices[index] for stage in stages if index < len(stage.devices)))


def _create(rank: int, ranks: Sequence[int], timeout: timedelta) -> Any:
    """A group of `ranks`, made by its members alone; None where this rank is none, or the only one."""
    if rank not in ranks or len(ranks) < 2:
        return None
    return dist.new_group(list(ranks), timeout=timeout, use_local_synchronization=True)
