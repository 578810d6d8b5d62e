"""Process groups: one per line of devices along mesh axes, one per way of messages, one per giver in an exchange.

A rank takes part only in creating the groups it is a member of. Groups are made in rounds, the same for all ranks;
the groups of one round have no rank in common, so that no circle of ranks waits for one another. torch names a group
after its ranks and the number of groups its process has made, so a rank that is in no group of a round makes one of
its own.

A group of messages has one sender, and messages of one pair of stages only: they leave in the order in which they are
awaited. A communicator of NCCL that carried others too could stall, as it knows no tags.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

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
    """Their process group, in which ranks ascend; None where the axis has one device."""

    def to_group(self, pieces: Tensor) -> Tensor:
        """One piece per place along the axis, in the order of the group."""
        return _in_order(pieces, [self.ranks.index(rank) for rank in sorted(self.ranks)])

    def from_group(self, pieces: Tensor) -> Tensor:
        """One piece per member of the group, in the order of the axis."""
        members = sorted(self.ranks)
        return _in_order(pieces, [members.index(rank) for rank in self.ranks])


def _in_order(pieces: Tensor, order: Sequence[int]) -> Tensor:
    if list(order) == sorted(order):
        return pieces
    return torch.stack([pieces[place] for place in order])  # a list as an index would wait for the device


class Way(NamedTuple):
    """The way of messages: from a rank, in a stage it takes part in, to a rank in another stage."""

    source: int
    """The stage that sends."""
    target: int
    """The stage that receives."""
    sender: int
    receiver: int


class Giver(NamedTuple):
    """An exchange and who sends in it: one rank, or -1 for all at once."""

    exchange: str
    sender: int = -1


@dataclass(frozen=True, slots=True)
class Groups:
    """Every process group of one rank."""

    axes: Mapping[tuple[int, str], Axis]
    """Number of a stage this rank takes part in, name of an axis of its mesh -> the axis."""
    messages: Mapping[Way, Any]
    exchanges: Mapping[Giver, Any]


def named_axes(axes: Mapping[tuple[int, str], Axis]) -> dict[tuple[str, int | None], Axis]:
    """Axes by their name and a stage; also by their name and None, where all stages that have it agree."""
    found: dict[tuple[str, int | None], Axis] = {(name, stage): axis for (stage, name), axis in axes.items()}
    for name in {name for name, _ in found}:
        own = [axis for (other, _), axis in found.items() if other == name]
        if all(axis == own[0] for axis in own):
            found[name, None] = own[0]
    return found


def create_groups(
    rank: int,
    stages: Sequence[Mesh],
    messages: Iterable[tuple[int, int]],
    exchanges: Mapping[Giver, Sequence[int]],
    device: torch.device,
    timeout: timedelta,
) -> Groups:
    """Create the groups of `rank`; every rank of the plan calls this, at the same time.

    Args:
        rank: This process.
        stages: The mesh of each stage, in order.
        messages: The pairs of stages between which messages travel, the one that sends first.
        exchanges: The ranks that send or receive, per exchange and giver.
        device: Where this rank's tensors are.
        timeout: Longest wait of one communication.
    """
    lines = {line: line for mesh in stages for name in mesh.names for line in _lines(mesh, name)}
    ways = {way: (way.sender, way.receiver) for pair in messages for way in _ways(stages, *pair)}
    wanted: dict[Hashable, tuple[int, ...]] = {
        **lines,
        **ways,
        **{giver: tuple(ranks) for giver, ranks in sorted(exchanges.items())},
    }
    made: dict[Hashable, Any] = {}
    for number in make_rounds(wanted):
        key = number.get(rank)
        ranks = (rank,) if key is None else wanted[key]
        made[key] = dist.new_group(list(ranks), timeout=timeout, use_local_synchronization=True)
        if key not in lines and key is not None:
            # NCCL connects a group at its first use, which waits for all members: a send would wait, too
            dist.all_reduce(torch.zeros(1, device=device), group=made[key])
    axes = {
        (number, name): _axis(rank, mesh, name, made)
        for number, mesh in enumerate(stages)
        for name in (mesh.names if rank in mesh.devices else ())
    }
    return Groups(
        axes,
        {key: group for key, group in made.items() if isinstance(key, Way)},
        {key: group for key, group in made.items() if isinstance(key, Giver)},
    )


def make_rounds(wanted: Mapping[Hashable, Sequence[int]]) -> list[dict[int, Hashable]]:
    """Groups of several ranks in rounds: per round each rank that is in a group -> the one group it is in."""
    rounds: list[dict[int, Hashable]] = []
    for key, ranks in wanted.items():
        if len(ranks) < 2:
            continue
        free = next((members for members in rounds if members.keys().isdisjoint(ranks)), None)
        if free is None:
            free = {}
            rounds.append(free)
        free |= dict.fromkeys(ranks, key)
    return rounds


def partner(rank: int, mesh: Mesh, other: Mesh) -> int:
    """The rank at this one's place in another stage."""
    return other.devices[mesh.devices.index(rank)]


def _lines(mesh: Mesh, name: str) -> Iterable[tuple[int, ...]]:
    """The devices along an axis, ascending, for each place along the others."""
    return dict.fromkeys(tuple(sorted(mesh.group(name, device))) for device in mesh.devices)


def _ways(stages: Sequence[Mesh], source: int, target: int) -> Iterable[Way]:
    """The ways of messages between two stages; what a rank hands to itself needs none."""
    pairs = zip(stages[source].devices, stages[target].devices, strict=False)
    return (Way(source, target, sender, receiver) for sender, receiver in pairs if sender != receiver)


def _axis(rank: int, mesh: Mesh, name: str, made: Mapping[Hashable, Any]) -> Axis:
    ranks = mesh.group(name, rank)
    group = made.get(tuple(sorted(ranks)))
    return Axis(name, mesh.size(name), mesh.coordinates(rank)[name], ranks, group)
