"""Shorten: a graph with fewer of its repeated layers, from which all of them can be priced.

Layers repeat each other where their operators, in order, do the same on tensors of the same shapes; so do pairs of
layers, and longer periods. Of a run of periods the first two and the last stay, so that one of them has neighbours
like itself on both sides. What is gone is bridged: forward operators read of the second what they read of the last that
is gone, backward operators of the last what they read of the first that is gone.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from superscaler.ir.graph import Graph, Operator, Phase, Ref, drop_unread
from superscaler.ir.tensor import Role

FEWEST = 4
"""Repetitions of a run that is worth shortening."""
LONGEST_PERIOD = 4
"""Layers that may differ before they repeat, as windows of Swin's blocks are shifted in every other one."""
VARIADIC = frozenset({"total"})
"""Kinds that take any number of operands, of which some may be left out."""


@dataclass(frozen=True)
class ShortGraph:
    """A graph without most of its repeated layers."""

    graph: Graph
    stands_for: Mapping[str, tuple[str, ...]]
    """Layer that is left -> the layers it is a copy of, with itself, in order. Of a run, those of the second period
    stand for all but those of the first and the last."""


def shorten(graph: Graph, layers: Sequence[str]) -> ShortGraph:
    """Leave three layers of every run of layers that repeat each other.

    Args:
        graph: A step, or a run for inference.
        layers: Paths of modules, in order of use.
    """
    bodies = _bodies(graph, layers)
    stands_for: dict[str, tuple[str, ...]] = {layer: (layer,) for layer in layers}
    for run in _runs(graph, [layer for layer in layers if bodies[layer]], bodies):
        shorter = _without(graph, run, bodies)
        if shorter is None:
            continue
        graph = shorter
        for place, layer in enumerate(run[1]):
            stands_for[layer] = tuple(period[place] for period in run[1:-1])
        for layer in (layer for period in run[2:-1] for layer in period):
            del stands_for[layer]
    return ShortGraph(graph, stands_for)


Bodies = Mapping[str, Sequence[Operator]]
Run = Sequence[Sequence[str]]
"""Periods of layers, which repeat each other."""


def _bodies(graph: Graph, layers: Collection[str]) -> dict[str, list[Operator]]:
    """The operators of each layer, in order."""
    bodies: dict[str, list[Operator]] = {layer: [] for layer in layers}
    for operator in graph.operators:
        module = operator.module
        while module and module not in bodies:
            module = module.rpartition(".")[0]
        if module:
            bodies[module].append(operator)
    return bodies


def _runs(graph: Graph, layers: Sequence[str], bodies: Bodies) -> Iterator[Run]:
    """Neighbours that repeat each other, as often as they do, in the shortest periods."""
    signatures = [_signature(graph, layer, bodies[layer]) for layer in layers]
    start = 0
    while start < len(layers):
        run: Run = []
        for period in range(1, LONGEST_PERIOD + 1):
            stop = start + period
            while stop < len(layers) and signatures[stop] == signatures[stop - period]:
                stop += 1
            count = (stop - start) // period
            if count >= FEWEST:
                run = [layers[start + i * period : start + (i + 1) * period] for i in range(count)]
                yield run
                break
        start += sum(map(len, run)) or 1


def _signature(graph: Graph, layer: str, body: Sequence[Operator]) -> Any:
    """What a layer does: kinds, arguments, shapes, and which of its own tensors its operators read."""
    places = {name: (i, j) for i, operator in enumerate(body) for j, name in enumerate(operator.writes)}

    def tensor(name: str) -> Any:
        own = graph.tensors[name]
        return places.get(name, own.role), own.shape, own.dtype

    return tuple(
        (
            operator.kind, operator.phase, operator.module.removeprefix(layer), operator.rule,
            tuple(map(tensor, operator.reads)), tuple(map(tensor, operator.writes)), repr(operator.arguments),
            repr([pair for pair in operator.keywords if pair[0] != "key"]),
        )
        for operator in body
    )  # fmt: skip


def _without(graph: Graph, run: Run, bodies: Bodies) -> Graph | None:
    """Take out all of a run but its first two and its last; None where something else needs what lies between."""
    body = [[operator for layer in period for operator in bodies[layer]] for period in run]
    gone = [operator for period in body[2:-1] for operator in period]
    removed = {operator.name for operator in gone}
    written = {name for operator in gone for name in operator.writes}
    stored = {
        name
        for operator in gone
        for name in operator.reads
        if graph.tensors[name].role.is_stored and not {o.name for o in graph.readers[name]} - removed
    }
    lost = written | stored
    bridge: dict[str, str] = {}
    for is_backward, source, stand_in in ((False, body[-2], body[1]), (True, body[2], body[-1])):
        for operator, twin in zip(source, stand_in, strict=True):
            if (operator.phase is not Phase.FORWARD) == is_backward:
                bridge |= zip(operator.writes, twin.writes, strict=True)
    operators = []
    for operator in graph.operators:
        if operator.name in removed:
            continue
        bridged = _bridged(operator, bridge, written, stored)
        if bridged is None:
            return None
        operators.append(bridged)
    shorter = replace(
        graph,
        operators=tuple(operators),
        tensors={name: tensor for name, tensor in graph.tensors.items() if name not in lost},
        updates={name: new for name, new in graph.updates.items() if name not in stored},
        gradients={name: gradient for name, gradient in graph.gradients.items() if name not in stored},
        values={name: value for name, value in graph.values.items() if name not in stored},
        initialisers={name: how for name, how in graph.initialisers.items() if name not in stored},
        saved_as={name: names for name, names in graph.saved_as.items() if name not in stored},
    )
    needed = {*shorter.outputs, *shorter.updates.values(), *shorter.gradients.values()}
    return None if needed & written or not _is_ordered(shorter) else drop_unread(shorter)


def _bridged(
    operator: Operator, bridge: Mapping[str, str], written: Collection[str], stored: Collection[str]
) -> Operator | None:
    """An operator that reads nothing that is gone; None where it cannot do without."""
    if not any(name in written or name in stored for name in operator.reads):
        return operator
    if operator.kind in VARIADIC:
        reads = tuple(name for name in operator.reads if name not in written and name not in stored)
        return replace(operator, reads=reads, arguments=(tuple(Ref(i) for i in range(len(reads))),))
    if any(name in stored or (name in written and name not in bridge) for name in operator.reads):
        return None
    reads = tuple(bridge.get(name, name) for name in operator.reads)
    return replace(operator, reads=reads)


def _is_ordered(graph: Graph) -> bool:
    """Whether every tensor is written before it is read."""
    there = {name for name, tensor in graph.tensors.items() if tensor.role in _GIVEN}
    for operator in graph.operators:
        if any(name in graph.tensors and name not in there for name in operator.reads):
            return False
        there.update(operator.writes)
    return True


_GIVEN = (Role.INPUT, Role.PARAMETER, Role.BUFFER, Role.STATE, Role.STEP)
