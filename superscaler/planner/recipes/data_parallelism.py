"""Data parallelism: the batch cut, parameters held by all."""

from collections.abc import Collection

from superscaler.planner.micro_batches import batch_axes
from superscaler.planner.placement import letters_of
from superscaler.planner.planner import Planner
from superscaler.planner.selection import Selection


def data_parallel(p: Planner, over: str = "dp", without: Collection[str] = ()) -> None:
    """Cut the batch; every device holds all parameters, whose gradients are summed once (DDP, arXiv 2006.15704).

    Operators named in `without` are not cut.
    Where samples of two inputs meet, as in a contrastive loss, each operator is cut along those of the first.
    """
    taken = set(without)
    for axis in batch_axes(p.graph, p.axes):
        carrying = tuple(operator for operator in p.graph.operators if letters_of(p.axes, operator, axis))
        free = tuple(operator for operator in carrying if operator.name not in taken)
        taken.update(operator.name for operator in carrying)
        within = None if len(free) == len(carrying) else Selection(p.graph, p.axes, free, f"{axis} alone")
        p.trans(axis, over, within=within)
