"""Weight gradients apart: the backward operators that a schedule may run later than the rest, as tasks W.

An operator of the backward belongs to W if whatever it makes serves the gradient of one parameter alone: the
product of activations and output gradients, and what only shapes its operands or result. Everything else hands
gradients on to other layers and stages, which wait for it (Zero Bubble, arXiv 2401.10241, section 2).
"""

from collections.abc import Mapping

from superscaler.ir.graph import Graph, Operator, Phase
from superscaler.ir.mesh import Mesh

_MANY = "\0many"
"""Stands for more than one parameter."""


def weight_operators(graph: Graph, phases: Mapping[str, Phase], places: Mapping[str, Mesh]) -> frozenset[str]:
    """The backward operators that can run in W.

    Args:
        graph: The traced step.
        phases: The phase of each operator so far.
        places: The mesh of each operator: W has no messages of its own, for which another stage would wait.
    """
    serves: dict[str, str] = {gradient: parameter for parameter, gradient in graph.gradients.items()}
    found: set[str] = set()
    for operator in reversed(graph.operators):
        if operator.phase is not Phase.BACKWARD:
            continue
        served = {
            serves.get(name, _MANY) for name in operator.writes if name in serves or graph.readers[name]
        }
        target = served.pop() if len(served) == 1 else _MANY
        if phases[operator.name] is Phase.BACKWARD and target != _MANY and not operator.is_again:
            found.add(operator.name)
        for name in operator.reads:
            # what is read by operators that serve different parameters serves neither alone
            serves[name] = target if serves.get(name, target) == target else _MANY
    return _without_messages(graph, phases, places, found)


def _without_messages(
    graph: Graph, phases: Mapping[str, Phase], places: Mapping[str, Mesh], found: set[str]
) -> frozenset[str]:
    """Leave out what would need a message of its own from another stage, and whatever B needs then."""

    def in_backward(operator: Operator) -> bool:
        return phases[operator.name] is Phase.BACKWARD and operator.name not in found

    def stays(operator: Operator) -> bool:
        place = places[operator.name]
        readers = [reader for name in operator.writes for reader in graph.readers[name]]
        if any(in_backward(r) or (r.name in found and places[r.name] != place) for r in readers):
            return True
        foreign = [n for n in operator.reads if n in graph.writer and places[graph.writer[n].name] != place]
        return any(
            not any(in_backward(reader) and places[reader.name] == place for reader in graph.readers[name])
            for name in foreign
        )

    leaving = True
    while leaving:
        leaving = {name for name in found if stays(graph.by_name[name])}
        found -= leaving
    return frozenset(found)
