"""Interpret: run a Graph on plain tensors in one process; what a graph means, and the truth of tests."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from superscaler.errors import PlanError
from superscaler.ir.graph import Graph, Operator, map_refs
from superscaler.ir.kinds import call_name, resolve


def interpret(graph: Graph, values: Mapping[str, Any], keep: str = "results") -> dict[str, torch.Tensor]:
    """Run every operator of `graph` once, in order.

    Args:
        graph: What to run.
        values: A tensor per stored tensor and input, and under ``step`` the number of the step, an int; what
            the model brought (``graph.values``) may be left out. Nothing in it is changed but what a kind
            writes into (`Kind.writes_into`).
        keep: ``"results"`` returns outputs, gradients and new values of stored tensors; ``"all"`` every
            tensor an operator wrote. Other tensors are freed after their last read.

    Returns:
        Written tensor -> its value; the new value of a stored tensor is under ``graph.updates[name]``.

    Raises:
        PlanError: A tensor that is read has no value, or one of another shape.
        SizeError: The graph has sizes that vary, and is not for those of the inputs.
    """
    assert keep in ("results", "all"), keep
    held = {**graph.values, **values}
    if graph.sizes and all(name in held for name in graph.inputs):
        graph = graph.bind({name: held[name].shape for name in graph.inputs})
    _check(graph, held)
    wanted = {*graph.outputs, *graph.gradients.values(), *graph.updates.values()}
    if keep == "all":
        wanted.update(graph.writer)
    remaining = Counter(name for operator in graph.operators for name in operator.reads)
    for operator in graph.operators:
        results = run_operator(operator, [held[name] for name in operator.reads])
        held.update(zip(operator.writes, results, strict=True))
        remaining.subtract(operator.reads)
        for name in (*operator.reads, *operator.writes):
            if not remaining[name] and name not in wanted:
                held.pop(name, None)
    return {name: held[name] for name in held if name in wanted}


def run_operator(operator: Operator, reads: Sequence[Any]) -> tuple[torch.Tensor, ...]:
    """Call the operator's function on `reads`, a value per tensor it reads; a result per tensor it writes.

    The operator may be a copy whose arguments and keywords were replaced by those of a piece.
    """
    present = call_operator(operator, reads)
    assert len(present) == len(operator.writes), (operator.name, len(present), operator.writes)
    return present


def call_operator(operator: Operator, reads: Sequence[Any]) -> tuple[torch.Tensor, ...]:
    """As `run_operator`, for an operator that does not say what it writes: all results there are."""
    arguments = map_refs(operator.arguments, lambda ref: reads[ref.index])
    keywords = {key: map_refs(value, lambda ref: reads[ref.index]) for key, value in operator.keywords}
    function = resolve(call_name(operator.kind))
    result = function(*map(own_type, arguments), **{key: own_type(value) for key, value in keywords.items()})
    results = result if isinstance(result, (tuple, list)) else (result,)
    return tuple(item for item in results if item is not None)


def own_type(value: Any) -> Any:
    """``torch.float32`` for the text of that name; everything else as it is."""
    if isinstance(value, str) and value.startswith("torch."):
        return getattr(torch, value.removeprefix("torch."))
    return value


def _check(graph: Graph, held: Mapping[str, Any]) -> None:
    for operator in graph.operators:
        for name in operator.reads:
            if name in graph.writer:
                continue
            tensor = graph.tensors[name]
            if name not in held:
                raise PlanError(
                    f"the graph {graph.name!r} reads {tensor}, which has no value",
                    where=operator.source,
                    remedy=f"pass it: interpret(graph, {{{name!r}: ...}})",
                )
            value = held[name]
            if isinstance(value, torch.Tensor) and tuple(value.shape) != tensor.shape:
                raise PlanError(
                    f"the graph {graph.name!r} reads {tensor}, and was given {list(value.shape)}",
                    where=operator.source,
                    remedy="a graph is for the shapes it was traced with; trace again for others",
                )
