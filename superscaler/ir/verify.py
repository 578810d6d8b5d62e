"""verify_graph: every tensor is written once, before it is read, by an operator with a rule that fits."""

from superscaler.errors import VerificationError
from superscaler.ir.graph import Graph, Operator
from superscaler.ir.kinds import rule_of
from superscaler.ir.tensor import Role

_FED = (Role.INPUT, Role.STEP)


def verify_graph(graph: Graph) -> None:
    """Check a graph.

    Raises:
        VerificationError: A tensor is read before it is written, written twice, or unknown, or two operators
            have one name; the message shows the operators around the fault.
        TraceError: An operator has no rule, or one that does not fit its shapes.
    """
    written = {name for name, tensor in graph.tensors.items() if tensor.role.is_stored or tensor.role in _FED}
    seen: set[str] = set()
    for operator in graph.operators:
        if operator.name in seen:
            raise _fault(graph, operator, "has the name of an earlier one")
        seen.add(operator.name)
        for name in operator.reads:
            if name not in written:
                raise _fault(graph, operator, f"reads {name!r}, which nothing writes before it")
        for name in operator.writes:
            if name not in graph.tensors:
                raise _fault(graph, operator, f"writes {name!r}, whose shape the graph does not tell")
            if name in written:
                raise _fault(graph, operator, f"writes {name!r}, which is written already")
        written.update(operator.writes)
        rule_of(operator, graph)
    wanted = (*graph.outputs, *graph.updates.values(), *graph.gradients.values())
    for name in wanted:
        if name not in written:
            raise VerificationError(f"nothing writes {name!r}, which the graph {graph.name!r} returns")


def _fault(graph: Graph, operator: Operator, what: str) -> VerificationError:
    index = graph.operators.index(operator)
    around = graph.operators[max(0, index - 5) : index + 5]
    lines = [
        f"{'->' if other is operator else '  '} "
        f"{', '.join(other.writes)} = {other.kind}({', '.join(other.reads)})"
        for other in around
    ]
    return VerificationError(
        f"the operator {operator.name!r} {what}:\n" + "\n".join(lines),
        where=operator.source,
        remedy="name every operator and tensor once, and write a tensor before it is read",
    )
