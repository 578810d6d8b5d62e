"""Step: one way to turn a Layout into another, a collective or a local act; and what each kind may do."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from math import prod

from superscaler.ir.layout import Layout, even_pieces, is_multiple
from superscaler.ir.mesh import TIME, Mesh


class StepKind(StrEnum):
    """What a step does; `apply` says when it may."""

    ALL_REDUCE = "all_reduce"
    """Summands along an axis are combined; everyone along it then holds the result."""
    REDUCE_SCATTER = "reduce_scatter"
    """Summands along an axis are summed; each device keeps one piece of the sum."""
    ALL_GATHER = "all_gather"
    """The pieces along the last axis that cuts a dim are joined."""
    ALL_TO_ALL = "all_to_all"
    """The last axis that cuts one dim cuts another instead."""
    SLICE = "slice"
    """Local: each device, or each micro-batch, keeps one piece of a value it holds."""
    MASK = "mask"
    """Local: the first device along an axis keeps its values, the others hold zeros."""
    SEND = "send"
    """Device i of one mesh sends what it holds to device i of another of the same shape, or keeps it for that stage."""
    EXCHANGE = "exchange"
    """Exact intersections go point-to-point between any two layouts (`superscaler.planner.exchange`)."""
    ACCUMULATE = "accumulate"
    """Local: summands of the micro-batches are summed in time."""


@dataclass(frozen=True, slots=True)
class Step:
    """One communication or local step between two layouts of one tensor."""

    kind: StepKind
    before: Layout
    after: Layout
    axis: str = ""
    """The mesh axis the group lies along; empty for send and exchange."""
    dim: int = -1
    """The fine dim scattered into, gathered along, or sliced; for all-to-all the dim that becomes cut."""
    from_dim: int = -1
    """For all-to-all: the fine dim whose cut is dissolved."""

    @property
    def is_local(self) -> bool:
        """Whether no device needs anything of another."""
        is_handover = self.kind is StepKind.SEND and self.before.mesh.devices == self.after.mesh.devices
        return is_handover or self.kind in (StepKind.SLICE, StepKind.MASK, StepKind.ACCUMULATE)

    @property
    def is_legal(self) -> bool:
        """Whether `apply` finds the same `after`; both layouts must be `plain`."""
        pieces = self.after.pieces[self.dim] if self.dim >= 0 and self.after.pieces else None
        return self.after == apply(
            self.kind, self.before, self.axis, self.dim, self.from_dim, pieces=pieces, target=self.after
        )

    def __str__(self) -> str:
        """Print as ``all_gather dim 1 over tp`` or ``send dp2 x tp2 on 0-3 -> dp2 x tp2 on 4-7``."""
        if self.kind in (StepKind.SEND, StepKind.EXCHANGE):
            return f"{self.kind} {self.before.mesh} -> {self.after.mesh}"
        if self.kind is StepKind.ALL_TO_ALL:
            return f"{self.kind} dim {self.from_dim} -> dim {self.dim} over {self.axis}"
        place = f" dim {self.dim}" if self.dim >= 0 else ""
        return f"{self.kind}{place} over {self.axis}"


def plain(layout: Layout) -> Layout:
    """The same placement, written in the one form that steps use.

    Axes of size 1 are named in no cut and in no partial, pieces are named only where they are not as
    even as can be, and the reducer is ``sum`` where nothing is partial.
    """
    mesh = layout.mesh
    cuts = tuple(tuple(axis for axis in cut if mesh.size(axis) > 1) for cut in layout.cuts)
    partial = tuple(sorted(axis for axis in layout.partial if mesh.size(axis) > 1))
    pieces: list[tuple[int, ...] | None] = []
    for dim, given in enumerate(layout.pieces):
        balanced = even_pieces(layout.sizes[dim], layout.num_pieces(dim))
        pieces.append(None if given is None or tuple(given) == balanced else tuple(given))
    return replace(
        layout,
        cuts=cuts,
        partial=partial,
        reducer=layout.reducer if partial else "sum",
        pieces=tuple(pieces) if any(given is not None for given in pieces) else (),
    )


def apply(
    kind: StepKind,
    before: Layout,
    axis: str = "",
    dim: int = -1,
    from_dim: int = -1,
    *,
    pieces: tuple[int, ...] | None = None,
    target: Layout | None = None,
) -> Layout | None:
    """The layout a step leaves behind, or None where the step is not allowed.

    This is the meaning of the kinds: the search proposes steps with it, and a verifier recomputes every
    `Step.after` with it.

    Args:
        kind: What to do.
        before: A `plain` layout.
        axis, dim, from_dim: As in `Step`.
        pieces: For slice: the sizes of the pieces, where they are not as even as can be.
        target: For send and exchange: where the value goes.
    """
    if kind is StepKind.SEND:
        return _send(before, target)
    if kind is StepKind.EXCHANGE:
        return target if target is not None and exchange_fits(before, target) else None
    if kind is StepKind.SLICE:
        return _slice(before, axis, dim, pieces)
    if kind is StepKind.ALL_TO_ALL:
        return _all_to_all(before, axis, dim, from_dim)
    rule: Callable[[Layout, str, int], Layout | None] = {
        StepKind.ALL_REDUCE: _all_reduce,
        StepKind.REDUCE_SCATTER: _reduce_scatter,
        StepKind.ALL_GATHER: _all_gather,
        StepKind.MASK: _mask,
        StepKind.ACCUMULATE: _accumulate,
    }[kind]
    return rule(before, axis, dim)


def same_shape(one: Mesh, other: Mesh) -> bool:
    """Whether two meshes have the same axes, leaving out those of size 1, and the same micro-batches."""
    axes = [[(name, size) for name, size in mesh.axes if size > 1] for mesh in (one, other)]
    return axes[0] == axes[1] and one.micro_batches == other.micro_batches


def exchange_fits(before: Layout, after: Layout) -> bool:
    """Whether point-to-point messages can turn `before` into `after`.

    Micro-batches must hold the same elements on both sides, and summands either all arrive at every
    reader (to be summed) or stay the same summands.
    """
    if before.sizes != after.sizes or not time_agrees(before, after):
        return False
    given, wanted = space_partial(before), space_partial(after)
    if wanted:
        sizes = [[layout.mesh.size(axis) for axis in wanted] for layout in (before, after) if given == wanted]
        return given == wanted and before.reducer == after.reducer and sizes[0] == sizes[1]
    return not given or before.reducer == "sum"


def time_agrees(before: Layout, after: Layout) -> bool:
    """Whether a micro-batch holds the same elements, or the same summand, in both layouts."""
    if (TIME in before.partial) != (TIME in after.partial):
        return False
    return all(
        _time_pieces(before, dim) == _time_pieces(after, dim)
        and (TIME not in before.cuts[dim] or before.cuts[dim][0] == after.cuts[dim][0] == TIME)
        for dim in range(len(before.sizes))
    )


def space_partial(layout: Layout) -> tuple[str, ...]:
    """The axes over devices along which the values are summands."""
    return tuple(axis for axis in layout.partial if axis != TIME)


def uses_time(layout: Layout) -> bool:
    """Whether micro-batches hold different values."""
    return TIME in layout.partial or any(TIME in cut for cut in layout.cuts)


def _time_pieces(layout: Layout, dim: int) -> tuple[int, ...]:
    """Elements of fine dim `dim` per micro-batch; empty where time does not cut it."""
    if TIME not in layout.cuts[dim]:
        return ()
    pieces, count = layout.piece_sizes(dim), layout.mesh.micro_batches
    each = len(pieces) // count
    return tuple(sum(pieces[i * each : (i + 1) * each]) for i in range(count))


def _is_even(layout: Layout, dim: int) -> bool:
    """As `Layout.is_even`, without listing the pieces."""
    if layout.pieces and layout.pieces[dim] is not None:
        return layout.is_even(dim)
    return is_multiple(layout.sizes[dim], layout.num_pieces(dim))


def _with_cut(layout: Layout, dim: int, cut: tuple[str, ...], given: tuple[int, ...] | None = None) -> Layout:
    """`layout` with fine dim `dim` cut by `cut` into the `given` pieces, or as even as can be."""
    cuts = layout.cuts[:dim] + (cut,) + layout.cuts[dim + 1 :]
    count = prod(layout.mesh.size(axis) for axis in cut)
    if given is not None and given == even_pieces(layout.sizes[dim], count):
        given = None
    old = layout.pieces or (None,) * len(layout.sizes)
    pieces = old[:dim] + (given,) + old[dim + 1 :]
    return replace(layout, cuts=cuts, pieces=pieces if any(p is not None for p in pieces) else ())


def _without_partial(layout: Layout, axis: str) -> Layout:
    partial = tuple(other for other in layout.partial if other != axis)
    return replace(layout, partial=partial, reducer=layout.reducer if partial else "sum")


def _all_reduce(before: Layout, axis: str, dim: int) -> Layout | None:
    if axis == TIME or axis not in before.partial:
        return None
    return _without_partial(before, axis)


def _reduce_scatter(before: Layout, axis: str, dim: int) -> Layout | None:
    if axis == TIME or axis not in before.partial or before.reducer != "sum" or not _is_even(before, dim):
        return None
    after = _with_cut(_without_partial(before, axis), dim, before.cuts[dim] + (axis,))
    return after if _is_even(after, dim) else None


def _all_gather(before: Layout, axis: str, dim: int) -> Layout | None:
    if axis == TIME or before.cuts[dim][-1:] != (axis,) or not _is_even(before, dim):
        return None
    return _with_cut(before, dim, before.cuts[dim][:-1])


def _all_to_all(before: Layout, axis: str, dim: int, from_dim: int) -> Layout | None:
    gathered = _all_gather(before, axis, from_dim)
    if gathered is None or dim == from_dim or not _is_even(before, dim):
        return None
    after = _with_cut(gathered, dim, before.cuts[dim] + (axis,))
    return after if _is_even(after, dim) else None


def _slice(before: Layout, axis: str, dim: int, pieces: tuple[int, ...] | None) -> Layout | None:
    if axis == TIME:
        if uses_time(before) or before.cuts[dim]:
            return None
    elif axis not in before.replicated:
        return None
    if not before.cuts[dim]:
        return _with_cut(before, dim, (axis,), pieces)
    after = _with_cut(before, dim, before.cuts[dim] + (axis,))
    return after if pieces is None and _is_even(before, dim) and _is_even(after, dim) else None


def _mask(before: Layout, axis: str, dim: int) -> Layout | None:
    if axis not in before.replicated or before.reducer != "sum":
        return None
    return replace(before, partial=tuple(sorted(before.partial + (axis,))))


def _accumulate(before: Layout, axis: str, dim: int) -> Layout | None:
    if axis != TIME or TIME not in before.partial or before.reducer != "sum":
        return None
    return _without_partial(before, TIME)


def _send(before: Layout, target: Layout | None) -> Layout | None:
    if target is None or not same_shape(before.mesh, target.mesh):
        return None
    return replace(before, mesh=target.mesh)
