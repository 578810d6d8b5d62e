"""Exchange: an irregular redistribution of one tensor, as a table of moves from rank to rank."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from superscaler.runtime.groups import Giver

Box = tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class Move:
    """One message: a box of the source's local piece becomes a box of the target's."""

    source: int
    target: int
    source_box: Box
    target_box: Box

    @property
    def is_local(self) -> bool:
        """Whether a rank keeps the box for itself."""
        return self.source == self.target

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements per fine dim."""
        return tuple(part.stop - part.start for part in self.target_box)


@dataclass(frozen=True, slots=True)
class Exchange:
    """What one rank does in an exchange, be it within a stage or from one to another."""

    dtype: torch.dtype
    ranks: tuple[int, ...]
    """All ranks that give or take."""
    moves: tuple[Move, ...]
    """Those that start or end here, local ones too, in the order of the table, which is one order for all ranks."""
    source_view: tuple[int, ...]
    """The fine shape of what this rank holds."""
    target_view: tuple[int, ...] | None
    """The fine shape of what this rank receives; None: nothing."""
    target_shape: tuple[int, ...] | None
    is_sum: bool
    """Whether messages add up; otherwise each fills its own box."""

    def box_to_send(self, x: Tensor, move: Move) -> Tensor:
        """The part of `x` a move takes, contiguous."""
        return x.reshape(self.source_view)[move.source_box].to(self.dtype).contiguous()

    def empty_box(self, move: Move, device: torch.device) -> Tensor:
        """What a message is received into."""
        return torch.empty(move.shape, dtype=self.dtype, device=device)

    def empty_target(self, device: torch.device) -> Tensor:
        """What messages are put into, over fine dims."""
        assert self.target_view is not None
        make = torch.zeros if self.is_sum else torch.empty
        return make(self.target_view, dtype=self.dtype, device=device)

    def put(self, target: Tensor, move: Move, message: Tensor) -> None:
        """Add or write one message into its box."""
        part = target[move.target_box]
        part.copy_(message.view(part.shape)) if not self.is_sum else part.add_(message.view(part.shape))


def exchange_groups(tables: Mapping[str, Mapping[str, Any]]) -> dict[Giver, tuple[int, ...]]:
    """The ranks of every group that the exchanges of ``plan.json`` need.

    Within a stage all ranks send and receive at once. From one stage to another who gives does not wait, and a rank
    may do both at different times: there, each that gives has a group of its own.
    """
    groups: dict[Giver, set[int]] = {}
    for name, table in tables.items():
        for source, target, *_ in table["moves"]:
            if source != target:
                giver = Giver(name, source) if table["crosses"] else Giver(name)
                groups.setdefault(giver, set()).update((source, target))
    return {giver: tuple(sorted(ranks)) for giver, ranks in groups.items()}


def read_exchange(table: Mapping[str, Any], rank: int) -> Exchange:
    """One rank's part of an exchange of ``plan.json``."""
    moves = tuple(
        Move(source, target, _box(source_box), _box(target_box))
        for source, target, source_box, target_box in table["moves"]
        if rank in (source, target)
    )

    def own(field: str) -> tuple[int, ...] | None:
        value = table[field].get(str(rank))
        return None if value is None else tuple(value)

    return Exchange(
        dtype=getattr(torch, table["dtype"]),
        ranks=tuple(sorted({rank for source, target, *_ in table["moves"] for rank in (source, target)})),
        moves=moves,
        source_view=own("source_view") or (),
        target_view=own("target_view"),
        target_shape=own("target_shape"),
        is_sum=table["sum"],
    )


def _box(intervals: list[list[int]]) -> Box:
    return tuple(slice(start, stop) for start, stop in intervals)
