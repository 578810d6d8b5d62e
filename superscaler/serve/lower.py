"""Lower: the graph of a causal language model becomes one that serves many sequences at once, a step at a time.

What goes in is the model as it was traced, [batch, seq] tokens to logits. What comes out reads the flat list of tokens
that one step runs, of any number of sequences, each token with its position and its place in the caches, and returns
the logits of those wanted. It is a graph like any other: plans cut it, programs run it.
"""

from dataclasses import dataclass, replace

from superscaler.errors import TraceError
from superscaler.ir.graph import Graph
from superscaler.ir.verify import verify_graph
from superscaler.serve.inputs import declared_inputs, sizes
from superscaler.serve.one_sequence import one_sequence
from superscaler.serve.paged import DEFAULT_CACHE, CacheSize, with_caches
from superscaler.serve.positions import longest_by_tables, with_positions
from superscaler.serve.simplify import without_idle_views
from superscaler.serve.tokenwise import verify_tokenwise
from superscaler.serve.wanted import with_wanted


@dataclass(frozen=True)
class Servable:
    """A lowered graph, and what an engine needs to know of it."""

    graph: Graph
    cache: CacheSize
    longest: int
    """Tokens of the longest sequence the model is for, prompt and continuation together."""


def lower(graph: Graph, *, cache: CacheSize = DEFAULT_CACHE, longest: int | None = None) -> Servable:
    """Lower a traced causal language model.

    Args:
        graph: An inference graph whose only input is ``tokens [batch, seq]``, with `seq` (and `batch`, unless it is 1)
            given as sizes that vary: ``ss.trace(model, (tokens,), dynamic={"tokens": ("batch", "seq")})``. Its first
            output is the logits ``[batch, seq, vocab]``.
        cache: How many tokens the caches hold.
        longest: Limits sequences to so many tokens, such as the rows of a table of positions, where the model
            itself sets no limit.

    Raises:
        TraceError: The model cannot be served; the message names the operator, the line, and the remedy.
    """
    first = replace(graph, outputs=graph.outputs[:1])
    one, limit = one_sequence(first)
    lowered = with_caches(without_idle_views(one), cache)
    lowered = without_idle_views(with_positions(_with_inputs(lowered)))
    verify_tokenwise(lowered)
    lowered = with_wanted(lowered)
    verify_graph(lowered)
    limit = min(limit, longest_by_tables(lowered), longest or limit, cache.slots)
    return Servable(lowered, cache, limit)


def _with_inputs(graph: Graph) -> Graph:
    declared = declared_inputs()
    taken = sorted(declared.keys() & graph.tensors.keys())
    if taken:
        raise TraceError(
            f"the graph {graph.name!r} has {', '.join(taken)} already, which a lowered graph reads",
            remedy="name the model's input and parameters otherwise",
        )
    return replace(
        graph, inputs=(*graph.inputs, *declared), tensors={**declared, **graph.tensors}, sizes=sizes()
    )
