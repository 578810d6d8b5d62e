"""Tokenwise: the proof that in a lowered graph tokens of different sequences meet in attentions alone."""

from superscaler.errors import TraceError
from superscaler.ir.graph import Graph, Operator
from superscaler.ir.kinds import row_of, rule_of
from superscaler.ir.size import Size
from superscaler.serve.data import reached_by
from superscaler.serve.inputs import POSITIONS, token_input


def verify_tokenwise(graph: Graph) -> None:
    """Check by the rules that every operator but attentions computes each token from that token alone.

    Raises:
        TraceError: An operator sums over tokens, or needs all of them.
    """
    data = reached_by(graph, token_input(graph), POSITIONS)
    for operator in graph.operators:
        if operator.kind != "paged_attention" and not data.isdisjoint(operator.reads):
            _verify(graph, operator, data)


def _verify(graph: Graph, operator: Operator, data: set[str]) -> None:
    _verify_arguments(operator)
    rule, sizes = rule_of(operator, graph)
    letters = {letter for letter, size in sizes.items() if isinstance(size, Size)}
    mixed = letters & set(rule.fixed)
    read = {
        letter
        for name, term in zip(operator.reads, rule.reads, strict=True)
        if name in data
        for letter in term.letters
    }
    for term in rule.writes:
        mixed |= (letters & read) - set(term.letters)
    if mixed:
        raise TraceError(
            f"{operator.name!r} ({operator.kind}) makes one token depend on others outside of an attention",
            where=operator.source,
            remedy="serve a causal language model whose tokens meet in attentions alone",
        )


def _verify_arguments(operator: Operator) -> None:
    """Refuse what computes with the number of tokens, which is that of a step, not of a sequence."""
    shape = row_of(operator).shape_argument
    others = [value for place, value in enumerate(operator.arguments) if place != shape]
    if any(_holds_size(value) for value in (*others, *(value for _, value in operator.keywords))):
        raise TraceError(
            f"{operator.name!r} ({operator.kind}) computes with how long the sequence is, which is not known while it "
            "grows",
            where=operator.source,
            remedy="serve a model that needs positions alone",
        )


def _holds_size(value: object) -> bool:
    return isinstance(value, Size) or (isinstance(value, (tuple, list)) and any(map(_holds_size, value)))
