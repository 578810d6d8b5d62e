"""Held: what is known of a value without running anything, and what a step makes of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from superscaler.codegen.lower import fine_shape, local_shape
from superscaler.codegen.program import Collective, Mask, Offset, Slice
from superscaler.ir.axes import Axes
from superscaler.ir.layout import Extent, Layout
from superscaler.planner.steps import StepKind, apply

COLLECTIVES = (StepKind.ALL_REDUCE, StepKind.REDUCE_SCATTER, StepKind.ALL_GATHER, StepKind.ALL_TO_ALL)


@dataclass(frozen=True, slots=True)
class Held:
    """A value as every device of a stage holds its part of it, symbolically over the mesh."""

    tensor: str
    layout: Layout
    """In `superscaler.planner.steps.plain` form."""
    fine: bool = False
    """Whether the local value's dims are the fine dims."""
    host: bool = False
    """Whether it lies in host memory."""

    def shape(self, axes: Axes) -> tuple[Extent, ...]:
        """The local shape."""
        return fine_shape(self.layout) if self.fine else local_shape(axes, self.tensor, self.layout)

    def __str__(self) -> str:
        """Print as ``wte.weight as R2 V1 D[4, 1] ...``."""
        return f"{self.tensor} as {spell(self.layout)}" + (" in host memory" if self.host else "")


def spell(layout: Layout) -> str:
    """A layout with the names of its mesh axes, as messages compare two of them."""
    cuts = ", ".join(" ".join(cut) or "-" for cut in layout.cuts)
    partial = f", summands ({layout.reducer}) over {', '.join(layout.partial)}" if layout.partial else ""
    pieces = f", pieces {layout.pieces}" if layout.pieces else ""
    return f"cut [{cuts}]{partial}{pieces} on {layout.mesh}"


def after_collective(axes: Axes, held: Held, instruction: Collective) -> Held | None:
    """What a collective leaves, by its own fields and what is really held; None where it may not be."""
    kind = instruction.step.kind
    if kind not in COLLECTIVES or instruction.step.axis not in held.layout.mesh.names:
        return None
    if kind is StepKind.ALL_REDUCE:
        if instruction.step.before.reducer != held.layout.reducer:
            return None
        after = apply(kind, held.layout, instruction.step.axis)
        return replace(held, layout=after) if after else None
    dim = _fine_dim(axes, held, instruction.dim)
    from_dim = _fine_dim(axes, held, instruction.from_dim) if kind is StepKind.ALL_TO_ALL else -1
    if dim is None or from_dim is None:
        return None
    after = apply(kind, held.layout, instruction.step.axis, dim, from_dim)
    return replace(held, layout=after) if after else None


def after_mask(held: Held, instruction: Mask) -> Held | None:
    """What a mask leaves."""
    after = apply(StepKind.MASK, held.layout, instruction.step.axis)
    return replace(held, layout=after) if after else None


def after_slice(axes: Axes, held: Held, instruction: Slice) -> Held | None:
    """What a slice leaves; its start and length must be those of the piece its axis asks for."""
    dim = _fine_dim(axes, held, instruction.dim)
    axis, layout = instruction.step.axis, held.layout
    if dim is None:
        return None
    pieces = None if layout.cuts[dim] else instruction.start.pieces
    if pieces is not None and (sum(pieces) != layout.sizes[dim] or min(pieces) < 1):
        return None
    after = apply(StepKind.SLICE, layout, axis, dim, pieces=pieces)
    if after is None or len(after.piece_sizes(dim)) != after.num_pieces(dim):
        return None
    inner = _inner(axes, held, dim)
    if inner is None:
        return None
    if layout.cuts[dim]:
        start = Offset((axis,), (after.piece_sizes(dim)[0],) * after.mesh.size(axis), inner)
    else:
        start = Offset((axis,), after.piece_sizes(dim), inner)
    length = after.extent(dim)
    if instruction.start != start or instruction.length != Extent(inner * length.constant, length.tables):
        return None
    return replace(held, layout=after)


def _fine_dim(axes: Axes, held: Held, dim: int) -> int | None:
    """The fine dim that leads a dim of the local value, so that pieces of the one are pieces of the other."""
    parts: Sequence[Sequence[object]] = axes.dims[held.tensor]
    if held.fine:
        return dim if 0 <= dim < len(held.layout.sizes) else None
    if not 0 <= dim < len(parts) or not parts[dim]:
        return None
    return sum(len(part) for part in parts[:dim])


def _inner(axes: Axes, held: Held, dim: int) -> int | None:
    """Local elements of the sliced dim per element of fine dim `dim`; None where devices differ in it."""
    if held.fine:
        return 1
    position = 0
    for part in axes.dims[held.tensor]:
        if position == dim and part:
            extents = [held.layout.extent(position + i) for i in range(1, len(part))]
            return None if any(e.tables for e in extents) else prod(e.constant for e in extents)
        position += len(part)
    return None
