"""Tensor parallelism: weights cut inside operators; and, where it does not cut, the sequence."""

from collections.abc import Iterator

from superscaler.errors import PlanError
from superscaler.ir.axes import Axis
from superscaler.planner.planner import Planner
from superscaler.planner.recipes import sequence
from superscaler.planner.weight_axes import weight_axes


def tensor_parallel(p: Planner, over: str = "tp") -> None:
    """Cut every axis of a matrix product's weight that no operator needs whole (Megatron, arXiv 1909.08053).

    So are the rows of tables that the model's inputs look up.

    Raises:
        PlanError: There is no such axis.
    """
    axes = tensor_parallel_axes(p, over)
    if not axes:
        raise PlanError(
            f"the model {p.graph.name!r} has no weight of a matrix product that can be cut over {over!r}",
            where=p.speaker,
            remedy="use data parallelism, or a plan script with p.trans(operator, letter=...)",
        )
    for axis in axes:
        p.trans(axis, over)


def tensor_parallel_axes(p: Planner, over: str = "tp") -> list[Axis]:
    """Axes of matrix products' weights, and rows of tables, that all operators they run through can cut, one each."""
    count = max((mesh.size(over) for mesh in p.places.values() if over in mesh.names), default=1)
    # what inputs bring few of, as an image has three colours, is not the model's to cut
    few = {axis for name in p.graph.inputs for axis in p.axes.fine(name) if axis.size < count}
    return [axis for axis in weight_axes(p.graph, p.axes, _rows_looked_up(p, count)) if axis not in few]


def _rows_looked_up(p: Planner, count: int) -> Iterator[Axis]:
    """Rows of the tables that inputs look up; few are not worth a cut, nor are tables of positions."""
    given = set(p.graph.inputs)
    for operator in p.graph.operators:
        if not given.isdisjoint(operator.reads):
            given.update(operator.writes)
        if operator.kind == "embedding" and operator.reads[1] in given:
            yield from (axis for axis in p.axes.fine(operator.reads[0])[:1] if axis.size >= count)


def sequence_parallel(p: Planner, over: str = "tp") -> None:
    """Cut the sequence wherever tensor parallelism does not cut (Megatron, arXiv 2205.05198).

    Raises:
        PlanError: No input has a second dim.
    """
    cut = {axis.index for axis in tensor_parallel_axes(p, over)}
    carries = {
        operator.name: any(
            axis.index in cut for parts in p.axes.letters[operator.name].values() for axis in parts
        )
        for operator in p.graph.operators
    }
    busy = {operator.origin for operator in p.graph.operators if carries[operator.name]}
    axes = sequence.sequence_axes(p, "sp")
    free = {
        name: (letter, axis)
        for name, (letter, axis) in sequence.follow(p, axes).items()
        if p.graph.by_name[name].origin not in busy and p.axes.letters[name][letter][0] == axis
    }
    sequence.cut(p, sequence.as_read(p, free, axes), over)
