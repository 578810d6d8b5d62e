"""Which tensors of a graph depend on the user's tokens, and what the others are at given numbers of tokens."""

from dataclasses import replace

import torch

from superscaler.ir.graph import Graph, drop_unread
from superscaler.ir.interpret import interpret
from superscaler.serve.inputs import for_tokens


def reached_by(graph: Graph, *sources: str) -> set[str]:
    """The tensors computed from any of `sources`, with these."""
    reached = set(sources)
    for operator in graph.operators:
        if not reached.isdisjoint(operator.reads):
            reached.update(operator.writes)
    return reached


def values_at(graph: Graph, names: tuple[str, ...], tokens: int) -> list[torch.Tensor] | None:
    """What tensors that depend on no input are for a sequence of so many tokens; None where they need weights.

    What a model brought as the value of a buffer is known; parameters may not be.
    """
    part = drop_unread(replace(graph, outputs=names, updates={}, gradients={}))
    read = {name for operator in part.operators for name in operator.reads} - set(part.writer)
    if not read <= set(graph.values) or not read.isdisjoint(graph.inputs):
        return None
    found = interpret(replace(for_tokens(part, tokens), sizes={}), {})
    return [found[name] for name in names]
