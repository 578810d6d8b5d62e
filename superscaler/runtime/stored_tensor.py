"""A tensor as a build folder describes it: what it is, and which piece each rank holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from superscaler.ir.layout import Layout
from superscaler.ir.mesh import TIME, Mesh
from superscaler.ir.tensor import Region, Role

Runs = list[tuple[int, int]]
"""Half-open intervals of one dim, ascending."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """An input, parameter, buffer or optimizer state, held on one mesh."""

    name: str
    """What the programs that hold it call it."""
    source: str
    """The logical tensor; two meshes, or two layouts on one mesh, may each hold a value of it."""
    role: Role
    dtype: torch.dtype
    shape: tuple[int, ...]
    fine: tuple[tuple[int, ...], ...]
    """Fine sizes per dim; none for a dim of one element."""
    layout: Layout
    saved_as: tuple[str, ...] = ()
    """Its names in a checkpoint: several where it is tied, none where no checkpoint holds it."""
    host: bool = False
    """Whether it lies in host memory."""

    def __post_init__(self) -> None:
        assert self.shape == tuple(map(prod, self.fine)), (self.name, self.shape, self.fine)

    def coordinates(self, rank: int, micro_batch: int = 0) -> dict[str, int]:
        """Where a rank lies in the mesh, at a micro-batch."""
        return {**self.layout.mesh.coordinates(rank), TIME: micro_batch}

    def region(self, rank: int, micro_batch: int = 0) -> Region:
        """What a rank holds, over fine dims."""
        return self.layout.region(self.coordinates(rank, micro_batch))

    def local_shape(self, rank: int, micro_batch: int = 0) -> tuple[int, ...]:
        """The shape of what a rank holds."""
        return tuple(
            prod(stop - start for start, stop in intervals) for intervals in self._per_dim(rank, micro_batch)
        )

    def runs(self, rank: int, micro_batch: int = 0) -> list[Runs]:
        """Per dim, which of its indices a rank holds."""
        per_dim = self._per_dim(rank, micro_batch)
        return [dim_runs(sizes, intervals) for sizes, intervals in zip(self.fine, per_dim, strict=True)]

    def is_on(self, rank: int) -> bool:
        """Whether a rank holds a piece."""
        return rank in self.layout.mesh.devices

    def is_first_copy(self, rank: int) -> bool:
        """Whether this rank is the one of several with the same piece that writes it."""
        coordinates = self.layout.mesh.coordinates(rank)
        return all(coordinates[axis] == 0 for axis in self.layout.replicated)

    def _per_dim(self, rank: int, micro_batch: int) -> list[tuple[tuple[int, int], ...]]:
        intervals, per_dim, start = self.region(rank, micro_batch).intervals, [], 0
        for sizes in self.fine:
            per_dim.append(intervals[start : start + len(sizes)])
            start += len(sizes)
        return per_dim


def read_stored_tensor(name: str, entry: Mapping[str, Any], mesh: Mesh) -> StoredTensor:
    """Read one entry of ``plan.json``; KeyError or TypeError where it is no such entry."""
    fine = tuple(tuple(sizes) for sizes in entry["fine"])
    layout = Layout(
        mesh,
        tuple(size for sizes in fine for size in sizes),
        tuple(tuple(cut) for cut in entry["cuts"]),
        pieces=tuple(None if pieces is None else tuple(pieces) for pieces in entry["pieces"]),
    )
    shape = tuple(entry["shape"])
    source = entry.get("source", name)
    return StoredTensor(
        name, source, Role(entry["role"]), getattr(torch, entry["dtype"]), shape, fine, layout,
        tuple(entry.get("saved_as", (source,))), entry.get("host", False),
    )  # fmt: skip


def dim_runs(sizes: Sequence[int], intervals: Sequence[tuple[int, int]]) -> Runs:
    """Which indices of one dim a box over its fine `sizes` holds.

    >>> dim_runs((3, 4, 2), ((0, 3), (1, 3), (0, 2)))
    [(2, 6), (10, 14), (18, 22)]
    """
    runs, stride = [(0, 1)], 1
    for size, (start, stop) in zip(reversed(sizes), reversed(intervals), strict=True):
        if runs == [(0, stride)]:
            runs = [(start * stride, stop * stride)] if stop > start else []
        else:
            runs = [(i * stride + a, i * stride + b) for i in range(start, stop) for a, b in runs]
        stride *= size
    return runs
