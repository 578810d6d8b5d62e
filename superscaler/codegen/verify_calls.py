"""What a call of an operator's piece must look like, from the operator, its rule and its placement alone."""

from collections.abc import Mapping
from math import prod
from typing import Any

from superscaler.codegen.box import box_within
from superscaler.codegen.lower import fine_shape, local_shape
from superscaler.codegen.program import Offset
from superscaler.ir.graph import Operator
from superscaler.ir.kinds import linear_reads, row_of
from superscaler.ir.layout import Extent, Layout, even_pieces
from superscaler.ir.mesh import TIME
from superscaler.ir.rules import Rule, Term
from superscaler.planner.placement import PlacedGraph, Placement


def placement_fault(placed: PlacedGraph, operator: Operator) -> str:
    """Why an operator's cuts break its rule; empty where they do not."""
    placement, letters = placed.placements[operator.name], placed.axes.letters[operator.name]
    among = placed.phases[operator.name].is_repeated
    names = [name for _, cut in placement.cuts for name in cut] + list(placement.values)
    if len(set(names)) != len(names):
        return f"uses a mesh axis twice: {', '.join(names)}"
    for name in names:
        if name not in placement.mesh.names and not (name == TIME and among):
            return f"is cut over {name!r}, which its mesh {placement.mesh} does not have in this phase"
    for (letter, index), cut in placement.cuts:
        axis = next((axis for axis in letters.get(letter, ()) if axis.index == index), None)
        if axis is None or not placed.axes.cuttable(operator.name, letter, axis):
            return f"is cut along {letter!r}, which its rule forbids"
        if TIME in cut[1:]:
            return "is cut in time within a cut over devices"
    if placement.values:
        summed = linear_reads(operator)
        if not summed:
            return f"passes summands over {', '.join(placement.values)} on, but is not linear"
        for name, layout in ((operator.reads[i], placed.reads(operator)[i]) for i in summed):
            if layout is not None and not set(_wide(placement, placement.values)) <= set(layout.partial):
                return f"passes summands on, but reads {name!r} whole"
    return _layout_fault(placed, operator, placement)


def _layout_fault(placed: PlacedGraph, operator: Operator, placement: Placement) -> str:
    """Why the layouts of its tensors do not follow from its cuts."""
    rule = placed.axes.rules[operator.name]
    used = set(_wide(placement, placement.used))
    linear, reads = (
        linear_reads(operator),
        zip(operator.reads, rule.reads, placed.reads(operator), strict=True),
    )
    sides: list[tuple[str, Term, Layout | None, bool, tuple[str, ...]]] = []
    sides += [
        (n, t, layout, False, placement.values if i in linear else ())
        for i, (n, t, layout) in enumerate(reads)
    ]
    sides += [
        (n, t, layout, True, ())
        for n, t, layout in zip(operator.writes, rule.writes, placed.writes(operator), strict=True)
    ]
    for name, term, layout, written, passed in sides:
        if layout is None:
            continue
        wanted = {axis for (letter, _), cut in placement.cuts for axis in cut if letter in term.letters}
        present = {axis for cut in layout.cuts for axis in cut}
        if present != set(_wide(placement, wanted)):
            return f"cuts letters of {name!r} over {sorted(wanted)}, but its layout over {sorted(present)}"
        summed = (
            set(_wide(placement, [*passed, *_summed(rule, placement, term)]))
            if not written
            else set(layout.partial)
        )
        if summed != set(layout.partial):
            return f"reads {name!r} as summands over {layout.partial}, not {sorted(summed)}"
        if written and present | set(layout.partial) != used:
            found = f"{name!r} cut over {sorted(present)} and in summands over {sorted(layout.partial)}"
            return f"is cut over {sorted(used)}, but writes {found}"
        if written and layout.partial and layout.reducer != term.reducer:
            return f"writes {name!r} to be combined by {layout.reducer}, not {term.reducer}"
    return ""


def _summed(rule: Rule, placement: Placement, term: Term) -> list[str]:
    """The mesh axes over which a read tensor must be summands."""
    result = rule.writes[0].letters
    contracted = [axis for (letter, _), cut in placement.cuts for axis in cut if letter not in result]
    return contracted if term.additive else []


def _wide(placement: Placement, names: Any) -> list[str]:
    """Without mesh axes of one device."""
    return [name for name in names if placement.mesh.size(name) > 1]


def expected_call(placed: PlacedGraph, operator: Operator) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """The arguments and keywords with which a device must call an operator on its piece."""
    kind, placement, axes = row_of(operator), placed.placements[operator.name], placed.axes
    arguments, keywords = list(operator.arguments), dict(operator.keywords)
    written, name = placed.writes(operator)[0], operator.writes[0]
    if kind.shape_argument is not None:
        arguments[kind.shape_argument] = list(local_shape(axes, name, written))
    for keyword, letter in (kind.starts or {}).items():
        if letter not in axes.rules[operator.name].indexed:
            continue
        start = _letter_start(placed, operator, placement, letter)
        if start is not None:
            keywords[keyword] = start
    for keyword, letter in (kind.lengths or {}).items():
        keywords[keyword] = _letter_length(placed, operator, placement, letter)
    if kind.boxed and any(written.cuts):
        starts = [
            Offset(cut, written.piece_sizes(dim)) if cut else Offset((), ())
            for dim, cut in enumerate(written.cuts)
        ]
        keywords |= box_within(keywords, written, starts, fine_shape(written))
    return tuple(arguments), keywords


def is_same_call(one: Any, other: Any) -> bool:
    """Whether arguments are equal, lists and tuples alike."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(is_same_call, one, other))
    return type(one) is type(other) and one == other


def _letter_pieces(
    placement: Placement, index: int, size: int, letter: str
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The mesh axes that cut one axis of a letter, and the sizes of the pieces."""
    cut = tuple(_wide(placement, dict(placement.cuts).get((letter, index), ())))
    count = prod(placement.mesh.size(name) for name in cut)
    return cut, dict(placement.pieces).get(index) or even_pieces(size, count)


def _letter_start(
    placed: PlacedGraph, operator: Operator, placement: Placement, letter: str
) -> Offset | None:
    first, *inner = placed.axes.letters[operator.name][letter]
    cut, pieces = _letter_pieces(placement, first.index, first.size, letter)
    return Offset(cut, pieces, prod(axis.size for axis in inner)) if cut else None


def _letter_length(placed: PlacedGraph, operator: Operator, placement: Placement, letter: str) -> Extent:
    extent = Extent(1)
    for axis in placed.axes.letters[operator.name][letter]:
        cut, pieces = _letter_pieces(placement, axis.index, axis.size, letter)
        even = len(set(pieces)) == 1
        extent = extent * (Extent(pieces[0]) if even else Extent(1, ((cut, pieces),)))
    return extent
