"""Logits of the tokens that are wanted: of a prompt the last alone, so the head computes no more than these."""

from dataclasses import replace

from superscaler.errors import TraceError
from superscaler.ir.graph import Graph, Operator, Ref
from superscaler.ir.tensor import Role
from superscaler.serve.data import reached_by
from superscaler.serve.inputs import POSITIONS, TOKENS, WANTED, WANTED_ROWS, for_tokens, token_input

_HEADS = frozenset({"linear", "aten.mm", "aten.addmm", "aten.bmm"})


def with_wanted(graph: Graph) -> Graph:
    """The graph that picks the wanted tokens where only its head is left to compute: its logits are [1, wanted, vocab].

    Raises:
        TraceError: The output is not one row of logits per token.
    """
    output = _logits(graph)
    data = reached_by(graph, token_input(graph), POSITIONS)
    tail = _tail(graph, output, data)
    source = next(name for name in tail[0].reads if name in data)
    picked = f"{source}/wanted"
    dim = _token_dim(graph, source)
    pick = Operator(
        picked, "aten.index_select", (source, WANTED_ROWS), (picked,), (Ref(0), dim, Ref(1)),
        module=tail[0].module, source=tail[0].source, origin=tail[0].origin,
    )  # fmt: skip
    shape = for_tokens(graph.tensors[source].shape, WANTED)
    tensors = {
        **graph.tensors,
        picked: replace(graph.tensors[source], name=picked, shape=shape, role=Role.ACTIVATION),
    }
    names = {operator.name for operator in tail}
    operators: list[Operator] = []
    for operator in graph.operators:
        if operator.name == tail[0].name:
            operators.append(pick)
            operator = replace(
                operator, reads=tuple(picked if name == source else name for name in operator.reads)
            )
        if operator.name in names:
            tensors |= {name: for_tokens(tensors[name], WANTED) for name in operator.writes}
            operator = for_tokens(operator, WANTED)
        operators.append(operator)
    return replace(graph, operators=tuple(operators), tensors=tensors)


def _logits(graph: Graph) -> str:
    shapes = [graph.tensors[name].shape for name in graph.outputs]
    if len(shapes) == 1 and len(shapes[0]) == 3 and shapes[0][:2] == (1, TOKENS):
        return graph.outputs[0]
    found = ", ".join(str(graph.tensors[name]) for name in graph.outputs)
    raise TraceError(
        f"the graph {graph.name!r} returns {found}, not the logits [batch, seq, vocab] of every token",
        remedy="trace a model that returns its logits; of several outputs, the first is taken",
    )


def _tail(graph: Graph, output: str, data: set[str]) -> list[Operator]:
    """The operators behind which nothing but the output is computed, from the last matrix product on, in order.

    Each reads one tensor of the tokens, and is alone in reading it.
    """
    chain: list[Operator] = []
    name, found = output, 0
    while (writer := graph.writer.get(name)) is not None and writer.kind != "paged_attention":
        chain.append(writer)
        if writer.kind in _HEADS and not found:
            found = len(chain)
        reads = {one for one in writer.reads if one in data}
        if len(reads) != 1 or len(writer.writes) > 1:
            break
        (name,) = reads
        if found or len(graph.readers[name]) > 1 or _token_dim(graph, name) is None:
            break
    return chain[: found or 1][::-1]


def _token_dim(graph: Graph, name: str) -> int | None:
    """Which dim has an element per token."""
    shape = graph.tensors[name].shape
    return next((dim for dim, size in enumerate(shape) if size == TOKENS), None)
