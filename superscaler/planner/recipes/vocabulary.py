"""The vocabulary: what is computed over it before the layers and behind them, to be cut over many devices."""

from collections.abc import Sequence

from superscaler.errors import PlanError
from superscaler.ir.graph import Operator, Phase
from superscaler.planner.planner import Planner
from superscaler.planner.selection import Selection


def vocabulary_stages(p: Planner, layers: Sequence[Operator]) -> tuple[Selection, Selection]:
    """The operators along the vocabulary: those the layers depend on, and those that depend on the layers.

    A backward operator goes where its forward is.

    Raises:
        PlanError: There are none on one of the sides.
    """
    indices = {axis.index for axis in p.axis("vocab")}
    wide = {
        operator.name
        for operator in p.graph.operators
        if any(axis.index in indices for parts in p.axes.letters[operator.name].values() for axis in parts)
    }
    before, behind = _by_origin(p, wide, _reached(p, layers))
    return _chosen(p, before, "the embedding"), _chosen(p, behind, "the head")


def cut_vocabulary(p: Planner, over: str) -> None:
    """Cut the vocabulary over a mesh axis, where there is such an axis."""
    for axis in p.axis("vocab"):
        p.trans(axis, over)


def _reached(p: Planner, layers: Sequence[Operator]) -> set[str]:
    """Forward operators that depend on a layer."""
    found = {operator.name for operator in layers if operator.phase is Phase.FORWARD}
    for operator in p.graph.operators:
        writers = (p.graph.writer.get(name) for name in operator.reads)
        if operator.phase is Phase.FORWARD and any(writer and writer.name in found for writer in writers):
            found.add(operator.name)
    return found


def _by_origin(p: Planner, wide: set[str], after: set[str]) -> tuple[list[Operator], list[Operator]]:
    """The wide operators before and behind the layers; a backward operator goes where its forward is."""
    behind_origins = {o.origin for o in p.graph.operators if o.name in after and o.name in wide}
    sides: tuple[list[Operator], list[Operator]] = ([], [])
    for operator in p.graph.operators:
        if operator.name in wide and operator.phase in (Phase.FORWARD, Phase.BACKWARD):
            sides[operator.origin in behind_origins].append(operator)
    return sides


def _chosen(p: Planner, operators: Sequence[Operator], what: str) -> Selection:
    if not operators:
        raise PlanError(
            f"the model {p.graph.name!r} has no operators of {what} with an axis 'vocab'",
            where=p.speaker,
            remedy="use another schedule, or place its large tables over all rows in a plan script",
        )
    return Selection(p.graph, p.axes, tuple(operators), what)
