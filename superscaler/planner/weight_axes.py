"""Weight axes: the axes of a model's weights that every operator they run through can cut."""

from collections.abc import Iterable

from superscaler.ir.axes import Axes, Axis
from superscaler.ir.graph import Graph, Operator
from superscaler.ir.kinds import row_of
from superscaler.planner.micro_batches import batch_axes
from superscaler.planner.placement import letters_of


def weight_axes(graph: Graph, axes: Axes, further: Iterable[Axis] = ()) -> list[Axis]:
    """Axes of matrix products' weights that all operators they run through can cut, one per operator.

    In a transformer these are attention heads, feed-forward hidden units and the vocabulary. `further` axes come
    after them.
    """
    batch = set(batch_axes(graph, axes))
    products = [operator for operator in graph.operators if row_of(operator).flops_per_point == 2]
    weights = {tensor.name for tensor in graph.stored()}
    for operator in graph.operators:  # a weight in lower precision, or a piece of one, is still one
        if (operator.kind == "aten._to_copy" or operator.is_piece) and weights.issuperset(operator.reads):
            weights.update(operator.writes)
    candidates = dict.fromkeys(
        axis
        for operator in products
        for name in operator.reads
        if name in weights
        for axis in axes.fine(name)
    )
    candidates |= dict.fromkeys(further)
    carriers: dict[int, list[Operator]] = {}
    for operator in graph.operators:
        for index in {axis.index for parts in axes.letters[operator.name].values() for axis in parts}:
            carriers.setdefault(index, []).append(operator)
    chosen: list[Axis] = []
    taken: set[str] = set()
    for axis in candidates:
        names = {operator.name for operator in carriers[axis.index]}
        free = all(letters_of(axes, operator, axis) for operator in carriers[axis.index])
        if free and axis not in batch and not names & taken:
            chosen.append(axis)
            taken |= names
    return chosen
