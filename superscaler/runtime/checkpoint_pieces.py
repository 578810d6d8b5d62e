"""Which boxes of which tensors a rank writes and reads: the planners that torch.distributed.checkpoint (DCP) asks.

DCP knows tensors as boxes of consecutive indices. A rank's piece may be cut along part of a dim (the heads in each
third of a fused projection), so it is one box per combination of runs. DCP finds which saved boxes a wanted box meets.
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from superscaler.runtime.stored_tensor import Runs


@dataclass(frozen=True, slots=True)
class Box:
    """Consecutive indices of a tensor, and where a piece holds them."""

    offsets: tuple[int, ...]
    """In the whole tensor."""
    sizes: tuple[int, ...]
    places: tuple[int, ...]
    """In the piece."""

    def of(self, piece: Tensor) -> Tensor:
        """The part of a piece that is this box, as a view."""
        return piece[tuple(slice(a, a + n) for a, n in zip(self.places, self.sizes, strict=True))]


@dataclass(frozen=True, slots=True)
class Piece:
    """What a rank holds of a tensor."""

    source: str
    """The tensor, as a checkpoint names it."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    boxes: tuple[Box, ...]
    value: Tensor


def boxes(runs: Sequence[Runs]) -> tuple[Box, ...]:
    """The boxes of a piece that holds these indices per dim.

    >>> boxes([[(0, 2), (4, 6)], [(0, 3)]])
    (Box(offsets=(0, 0), sizes=(2, 3), places=(0, 0)), Box(offsets=(4, 0), sizes=(2, 3), places=(2, 0)))
    """
    per_dim = []
    for dim in runs:
        place, placed = 0, []
        for start, stop in dim:
            placed.append((start, stop - start, place))
            place += stop - start
        per_dim.append(placed)
    found = [
        Box(tuple(a for a, _, _ in box), tuple(n for _, n, _ in box), tuple(p for _, _, p in box))
        for box in product(*per_dim)
    ]
    return tuple(box for box in found if prod(box.sizes))


def whole(source: str, value: Tensor) -> Piece:
    """A tensor that one rank holds all of."""
    return Piece(source, tuple(value.shape), boxes([[(0, size)] for size in value.shape]), value)


class PiecesToSave(SavePlanner):
    """Plans the writing of this rank's pieces; no two ranks' may overlap, and all together are whole tensors.

    Args:
        pieces: What this rank writes.
        note: What the plan and, from the first rank that has one, the metadata carry as `planner_data`.
    """

    def __init__(self, pieces: Iterable[Piece], note: Any = None) -> None:
        self._note = note
        self._parts = {
            MetadataIndex(piece.source, box.offsets): (piece, box) for piece in pieces for box in piece.boxes
        }

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        """Nothing: the pieces are known."""

    def create_local_plan(self) -> SavePlan:
        """One item per box."""
        items = [_write_item(index, *part) for index, part in self._parts.items()]
        return SavePlan(items, planner_data=self._note)

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        """All boxes of each tensor, which must make it up."""
        found: dict[str, TensorStorageMetadata] = {}
        for item in (item for plan in all_plans for item in plan.items):
            data = item.tensor_data
            assert data is not None
            tensor = found.setdefault(
                item.index.fqn, TensorStorageMetadata(data.properties, data.size, chunks=[])
            )
            tensor.chunks.append(data.chunk)
        for name, tensor in found.items():
            covered = sum(prod(chunk.sizes) for chunk in tensor.chunks)
            assert covered == prod(tensor.size), (name, tensor)
        notes = (plan.planner_data for plan in all_plans if plan.planner_data is not None)
        return all_plans, Metadata(dict(found), planner_data=next(notes, None))

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        """The plan as it is."""
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        """The values of a box."""
        piece, box = self._parts[write_item.index]
        return box.of(piece.value)


class PiecesToLoad(LoadPlanner):
    """Plans the reading of this rank's pieces, into their values.

    Args:
        pieces: What this rank wants.
    """

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._pieces = pieces
        self._missing = sum(prod(box.sizes) for piece in pieces for box in piece.boxes)
        self._metadata = Metadata({})

    def set_up_planner(
        self, state_dict: Any, metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        """Take note of which boxes there are."""
        assert metadata is not None
        self._metadata = metadata

    def create_local_plan(self) -> LoadPlan:
        """One item for each saved box that a wanted one meets; it names the number of the piece and of the box."""
        items = []
        for number, piece in enumerate(self._pieces):
            saved = self._metadata.state_dict_metadata[piece.source]
            assert isinstance(saved, TensorStorageMetadata)
            wanted = [
                ChunkStorageMetadata(torch.Size(box.offsets), torch.Size(box.sizes)) for box in piece.boxes
            ]
            found = create_read_items_for_chunk_list(piece.source, saved, wanted)
            items += [replace(item, dest_index=_renamed(item.dest_index, str(number))) for item in found]
        return LoadPlan(items)

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        """Every rank reads what it wants."""
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        """The plan as it is."""
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Never asked for: a checkpoint holds nothing but tensors."""
        raise AssertionError(read_item)

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        """Where the values of an item go."""
        piece = self._pieces[int(read_item.dest_index.fqn)]
        assert read_item.dest_index.index is not None
        box = piece.boxes[read_item.dest_index.index].of(piece.value)
        ranges = zip(read_item.dest_offsets, read_item.lengths, strict=True)
        return box[tuple(slice(start, start + length) for start, length in ranges)]

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """Count what has come."""
        self._missing -= tensor.numel()

    @property
    def is_complete(self) -> bool:
        """Whether every element has come."""
        return self._missing == 0


def _renamed(index: MetadataIndex, name: str) -> MetadataIndex:
    return MetadataIndex(name, index.offset, index.index)


def _write_item(index: MetadataIndex, piece: Piece, box: Box) -> WriteItem:
    chunk = ChunkStorageMetadata(torch.Size(box.offsets), torch.Size(box.sizes))
    properties = TensorProperties(dtype=piece.value.dtype)
    return WriteItem(
        index, WriteItemType.SHARD, tensor_data=TensorWriteData(chunk, properties, torch.Size(piece.shape))
    )
