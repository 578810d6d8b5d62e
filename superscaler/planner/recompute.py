"""Recompute: the forward of a block runs again in its backward, so that what lies inside need not be stored.

(Chen et al., arXiv 1604.06174.) What enters a block, and what leaves it, stays stored; operators whose results
nobody needs again are not copied. The copies stand just before the first backward operator that reads them, and
draw the same random numbers: a dropout's mask depends on its key, the step and the element alone.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from superscaler.ir.graph import AGAIN, Graph, Operator, Phase, drop_unread


def recompute(graph: Graph, blocks: Sequence[Collection[str]], stored: Collection[str] = ()) -> Graph:
    """Copy the forward operators of each block, given by name, into the backward phase.

    Args:
        graph: Of a training step.
        blocks: Names of operators.
        stored: Operators of blocks whose results are stored all the same.
    """
    tensors = dict(graph.tensors)
    copied: dict[str, int] = {}
    waiting: dict[int, tuple[Operator, ...]] = {}
    for number, block in enumerate(blocks):
        chosen = operators_to_repeat(graph, block, stored)
        inside = {name for operator in chosen for name in operator.writes}
        names = {name: name + AGAIN for name in inside & _inner_tensors(graph, block, stored)}
        waiting[number] = tuple(_copy(operator, names) for operator in chosen)
        tensors |= {name + AGAIN: replace(tensors[name], name=name + AGAIN) for name in inside}
        copied |= dict.fromkeys(names, number)
    operators: list[Operator] = []
    for operator in graph.operators:
        if operator.phase is Phase.BACKWARD:
            for number in dict.fromkeys(copied[name] for name in operator.reads if name in copied):
                operators += waiting.pop(number, ())
            reads = tuple(name + AGAIN if name in copied else name for name in operator.reads)
            operator = replace(operator, reads=reads)
        operators.append(operator)
    assert not any(waiting.values()), waiting
    return drop_unread(replace(graph, tensors=tensors, operators=tuple(operators)))


def operators_to_repeat(
    graph: Graph, block: Collection[str], stored: Collection[str] = ()
) -> tuple[Operator, ...]:
    """The operators of a block without which its backward lacks something that is not stored, in order."""
    inner = _inner_tensors(graph, block, stored)
    pending = [
        name for name in inner if any(reader.phase is Phase.BACKWARD for reader in graph.readers[name])
    ]
    chosen: set[str] = set()
    while pending:
        operator = graph.writer[pending.pop()]
        if operator.name not in chosen:
            chosen.add(operator.name)
            pending += [name for name in operator.reads if name in inner]
    return tuple(graph.by_name[name] for name in block if name in chosen)


def _inner_tensors(graph: Graph, block: Collection[str], stored: Collection[str]) -> set[str]:
    """What a block makes that only itself and the backward read, and that is not stored."""
    leaving = {*graph.outputs, *graph.updates.values()}
    return {
        name
        for operator in map(graph.by_name.__getitem__, block)
        if operator.name not in stored
        for name in operator.writes
        if name not in leaving
        and all(reader.name in block or reader.phase is Phase.BACKWARD for reader in graph.readers[name])
    }


def _copy(operator: Operator, names: Mapping[str, str]) -> Operator:
    return replace(
        operator,
        name=operator.name + AGAIN,
        reads=tuple(names.get(name, name) for name in operator.reads),
        writes=tuple(name + AGAIN for name in operator.writes),
        phase=Phase.BACKWARD,
    )
