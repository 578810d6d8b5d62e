"""Layout: how a whole Tensor lies over a Mesh: replicated, value-split, dimension-split (the paper's RVD).

A tensor's dims are given *fine* (see `superscaler.ir.axes`): ``sizes`` lists them flat, all fine dims of
the first dim, then of the second. Every mesh axis either cuts one fine dim, or splits the values into
summands, or replicates. The axis ``mb`` (`superscaler.ir.mesh.TIME`) cuts in time: one piece per micro-batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

from superscaler.ir.mesh import TIME, Mesh
from superscaler.ir.size import Size, exact_quotient
from superscaler.ir.tensor import Region


@dataclass(frozen=True, slots=True)
class Extent:
    """A local size: a number, times one table lookup per unevenly cut fine dim."""

    constant: int
    tables: tuple[tuple[tuple[str, ...], tuple[int, ...]], ...] = ()
    """Per uneven fine dim: the mesh axes that cut it (major to minor) and the size of each piece."""

    def at(self, mesh: Mesh, coordinates: Mapping[str, int]) -> int:
        """The size at these mesh coordinates."""
        value = self.constant
        for axes, pieces in self.tables:
            value *= pieces[piece_index(mesh, axes, coordinates)]
        return value

    def __mul__(self, other: "Extent") -> "Extent":
        return Extent(self.constant * other.constant, self.tables + other.tables)


@dataclass(frozen=True, slots=True)
class Layout:
    """How one tensor lies over one mesh; regular by construction."""

    mesh: Mesh
    sizes: tuple[int, ...]
    """Elements per fine dim of the whole tensor."""
    cuts: tuple[tuple[str, ...], ...]
    """Per fine dim the mesh axes that cut it, major to minor."""
    partial: tuple[str, ...] = ()
    """Mesh axes over which the values are summands; sorted."""
    reducer: str = "sum"
    """How summands combine: sum, max or logsumexp."""
    pieces: tuple[tuple[int, ...] | None, ...] = ()
    """Per fine dim the sizes of its pieces where a plan chose them; empty or None: as even as can be."""

    def __post_init__(self) -> None:
        used = [axis for cut in self.cuts for axis in cut] + list(self.partial)
        assert len(self.cuts) == len(self.sizes), (self.sizes, self.cuts)
        assert len(set(used)) == len(used), f"a mesh axis used twice: {used}"

    @property
    def replicated(self) -> tuple[str, ...]:
        """Mesh axes along which every device holds the same."""
        used = {axis for cut in self.cuts for axis in cut} | set(self.partial)
        return tuple(axis for axis in self.mesh.names if axis not in used)

    def num_pieces(self, dim: int) -> int:
        """Into how many pieces fine dim `dim` is cut."""
        return prod(self.mesh.size(axis) for axis in self.cuts[dim])

    def piece_sizes(self, dim: int) -> tuple[int, ...]:
        """The size of each piece of fine dim `dim`, in order."""
        if self.pieces and self.pieces[dim] is not None:
            return self.pieces[dim]  # type: ignore[return-value]
        return even_pieces(self.sizes[dim], self.num_pieces(dim))

    def is_even(self, dim: int) -> bool:
        """Whether all pieces of fine dim `dim` have one size."""
        return len(set(self.piece_sizes(dim))) == 1

    def extent(self, dim: int) -> Extent:
        """The local size of fine dim `dim`."""
        pieces = self.piece_sizes(dim)
        if len(set(pieces)) == 1:
            return Extent(pieces[0])
        return Extent(1, ((self.cuts[dim], pieces),))

    def interval(self, dim: int, coordinates: Mapping[str, int]) -> tuple[int, int]:
        """Which elements of fine dim `dim` the device at `coordinates` holds."""
        pieces = self.piece_sizes(dim)
        index = piece_index(self.mesh, self.cuts[dim], coordinates)
        start = sum(pieces[:index])
        return start, start + pieces[index]

    def region(self, coordinates: Mapping[str, int]) -> Region:
        """What the device at `coordinates` (with ``mb`` where time is cut) holds."""
        index = piece_index(self.mesh, self.partial, coordinates)
        count = prod(self.mesh.size(axis) for axis in self.partial)
        intervals = tuple(self.interval(dim, coordinates) for dim in range(len(self.sizes)))
        return Region(intervals, (index, count))

    def on(self, mesh: Mesh) -> "Layout":
        """The same layout on another mesh of the same shape."""
        return self if mesh == self.mesh else replace(self, mesh=mesh)

    @property
    def at_home(self) -> "Layout":
        """The same layout on the mesh's `home`."""
        return self.on(self.mesh.home)

    def without_time(self) -> "Layout":
        """The same layout with the micro-batch axis taken away: the whole step at once."""
        cuts = tuple(tuple(axis for axis in cut if axis != TIME) for cut in self.cuts)
        return replace(self, cuts=cuts, partial=tuple(axis for axis in self.partial if axis != TIME))

    def __str__(self) -> str:
        """Print as ``R2 V1 D[4, 1]`` over fine dims."""
        replicas = prod(self.mesh.size(axis) for axis in self.replicated)
        values = prod(self.mesh.size(axis) for axis in self.partial)
        return (
            f"R{replicas} V{values} D[{', '.join(str(self.num_pieces(d)) for d in range(len(self.sizes)))}]"
        )


def even_pieces(size: int, count: int) -> tuple[int, ...]:
    """`size` elements in `count` pieces, as even as can be; a size that varies must come out even.

    >>> even_pieces(10, 4)
    (2, 3, 2, 3)
    """
    if isinstance(size, Size):
        assert is_multiple(size, count), f"{size} is cut into {count} pieces that are not even"
        return (exact_quotient(size, count),) * count
    return tuple(size * (i + 1) // count - size * i // count for i in range(count))


def is_multiple(size: int, count: int) -> bool:
    """Whether `count` pieces come out even; of a size that varies, the example's, which a run must be like."""
    return int(size) % count == 0


def piece_index(mesh: Mesh, axes: tuple[str, ...], coordinates: Mapping[str, int]) -> int:
    """The number of the piece at `coordinates`, when `axes` cut one after another, major to minor."""
    index = 0
    for axis in axes:
        index = index * mesh.size(axis) + coordinates[axis]
    return index
