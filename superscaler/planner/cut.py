"""Cut: one decision of a plan script: an axis, or a letter of single operators, is cut over a mesh axis."""

from collections.abc import Sequence
from dataclasses import dataclass

from superscaler.errors import PlanError
from superscaler.ir.axes import Axes, Axis
from superscaler.ir.graph import Graph, Operator
from superscaler.ir.size import Size
from superscaler.planner.placement import letters_of


@dataclass(frozen=True, slots=True)
class Cut:
    """What is cut, over what, and where that holds."""

    axis: Axis
    over: str
    operators: frozenset[str] | None
    """Where it holds; None: wherever the axis runs."""
    letter: str | None
    pieces: tuple[int, ...] | None
    where: str
    """The script's line."""


def cut_of_axis(
    graph: Graph,
    axes: Axes,
    axis: Axis,
    over: str,
    operators: frozenset[str] | None,
    pieces: Sequence[int] | None,
    where: str,
) -> Cut:
    """Cut an axis in every operator it runs through, or in some.

    Args:
        graph: What is planned.
        axes: Of the graph.
        axis: Of them.
        over: Name of a mesh axis.
        operators: Where the cut holds; None: wherever the axis runs.
        pieces: Their sizes, if not as even as can be.
        where: The script's line.

    Raises:
        PlanError: Every operator needs the axis whole, or the pieces do not make it up.
    """
    _check_pieces(axis, pieces, where)
    if not any(letters_of(axes, operator, axis) for operator in graph.operators):
        raise PlanError(
            f"the axis {axis} cannot be cut: every operator it runs through needs it whole",
            where=where,
            remedy="cut another axis; p.trans(operator, letter=...) cuts one operator alone",
        )
    return Cut(axis, over, operators, None, tuple(pieces) if pieces else None, where)


def cut_of_operator(
    axes: Axes, operator: Operator, letter: str | None, over: str, pieces: Sequence[int] | None, where: str
) -> Cut:
    """Cut one operator alone, along a letter of its rule; the other arguments are those of `cut_of_axis`.

    Raises:
        PlanError: No letter is given, the rule has no such letter, needs it whole, or the pieces do not make it up.
    """
    parts = axes.letters[operator.name].get(letter or "")
    if letter is None or parts is None:
        fault = f"has no letter {letter!r} to cut" if letter else "is to be cut, but not said along what"
        raise PlanError(
            f"{operator.name!r} ({operator.kind}) {fault}",
            where=where,
            remedy=f"give letter=, one of {', '.join(axes.letters[operator.name])}; or select fewer "
            'operators, for example those of one phase: selection.only("F")',
        )
    others = [other for other in axes.letters[operator.name] if _is_cuttable(axes, operator, other)]
    if letter not in others:
        raise PlanError(
            f"{operator.name!r} ({operator.kind}) cannot be cut along {letter!r}: "
            + ("it needs the whole of it" if parts else "it has one element"),
            where=where,
            remedy=f"cut it along one of {', '.join(others)}" if others else "it can only be replicated",
        )
    _check_pieces(parts[0], pieces, where)
    names = frozenset({operator.name})
    return Cut(parts[0], over, names, letter, tuple(pieces) if pieces else None, where)


def _is_cuttable(axes: Axes, operator: Operator, letter: str) -> bool:
    """Whether the first axis of a letter may be cut in an operator."""
    parts = axes.letters[operator.name][letter]
    return bool(parts) and axes.cuttable(operator.name, letter, parts[0])


def _check_pieces(axis: Axis, pieces: Sequence[int] | None, where: str) -> None:
    if pieces is not None and isinstance(axis.size, Size):
        raise PlanError(
            f"pieces {list(pieces)} are given of the axis {axis}, whose size varies from run to run",
            where=where,
            remedy="name no pieces: it is cut into even ones",
        )
    if pieces is not None and (sum(pieces) != axis.size or min(pieces) < 1):
        raise PlanError(
            f"pieces {list(pieces)} do not make up the axis {axis}",
            where=where,
            remedy=f"give positive sizes that add up to {axis.size}",
        )
