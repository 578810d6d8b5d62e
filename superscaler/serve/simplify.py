"""Leave out views that change nothing, which are many where a model was written for any batch and any mask."""

from dataclasses import replace

from superscaler.ir.graph import Graph, Operator

_VIEWS = frozenset({"reshape", "aten.expand", "aten.slice.Tensor", "aten.alias", "aten.clone"})


def without_idle_views(graph: Graph) -> Graph:
    """The graph with readers of an unchanged view reading what it is a view of."""
    same: dict[str, str] = {}
    kept: list[Operator] = []
    for operator in graph.operators:
        operator = replace(operator, reads=tuple(same.get(name, name) for name in operator.reads))
        if _is_idle(graph, operator):
            same[operator.writes[0]] = operator.reads[0]
        else:
            kept.append(operator)
    return replace(
        graph, operators=tuple(kept), outputs=tuple(same.get(name, name) for name in graph.outputs)
    )


def _is_idle(graph: Graph, operator: Operator) -> bool:
    if operator.kind not in _VIEWS or len(operator.reads) != 1 or len(operator.writes) != 1:
        return False
    before, after = graph.tensors[operator.reads[0]], graph.tensors[operator.writes[0]]
    return before.shape == after.shape and before.dtype == after.dtype
