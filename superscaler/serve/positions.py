"""Positions: what a model computed from how many tokens there are, it computes from where each token stands.

A model makes its positions itself, by ``arange`` or by counting ones. Such a tensor is found by what it is: it depends
on no input, and for any number of tokens it counts from some number up.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch

from superscaler.errors import TraceError
from superscaler.ir.graph import Graph, Operator, Ref, drop_unread
from superscaler.ir.interpret import interpret
from superscaler.ir.tensor import Role, Tensor
from superscaler.serve.data import reached_by, values_at
from superscaler.serve.inputs import POSITIONS, TOKENS, for_tokens, has_tokens, token_input
from superscaler.serve.one_sequence import LONGEST

_TRIED = (5, 8, 13)
"""Numbers of tokens at which a tensor is looked at."""


def with_positions(graph: Graph) -> Graph:
    """The graph with `positions` for what counts the tokens.

    Raises:
        TraceError: An operator reads something that depends on the number of tokens in another way.
    """
    data = reached_by(graph, token_input(graph))
    firsts = dict(_counts(graph, data))
    operators: list[Operator] = []
    tensors = dict(graph.tensors)
    for operator in graph.operators:
        name = operator.writes[0]
        if name in firsts and _is_read_otherwise(graph, name, firsts):
            for one, tensor in _from_positions(graph.tensors[name], operator, firsts[name]):
                operators.append(one)
                tensors[tensor.name] = tensor
        elif (table := _table(graph, operator)) is not None:
            operators.append(table)
        else:
            operators.append(operator)
    lowered = drop_unread(replace(graph, operators=tuple(operators), tensors=tensors))
    _check(lowered)
    return lowered


def _counts(graph: Graph, data: set[str]) -> Iterator[tuple[str, int]]:
    """The tensors that count tokens, and from which number on."""
    for operator in graph.operators:
        name = operator.writes[0]
        shape = graph.tensors[name].shape
        if len(operator.writes) > 1 or name in data or not _is_row(shape):
            continue
        found = [values_at(graph, (name,), tokens) for tokens in _TRIED]
        values = [one[0].flatten() for one in found if one is not None]
        if len(values) < len(_TRIED) or values[0].is_complex() or values[0].dtype == torch.bool:
            continue
        first = values[0][0].item()
        if first == int(first) and all(_counts_from(int(first), value) for value in values):
            yield name, int(first)


def _is_row(shape: tuple[int, ...]) -> bool:
    """Whether a tensor has a number per token and nothing else."""
    return TOKENS in shape and sum(size != 1 for size in shape) == 1


def _counts_from(first: int, values: torch.Tensor) -> bool:
    return torch.equal(values, torch.arange(first, first + len(values)).to(values.dtype))


def _is_read_otherwise(graph: Graph, name: str, firsts: dict[str, int]) -> bool:
    """Whether anything but another count is made of it."""
    return any(operator.writes[0] not in firsts for operator in graph.readers[name])


def _from_positions(tensor: Tensor, operator: Operator, first: int) -> Iterator[tuple[Operator, Tensor]]:
    """Operators, and what each writes, that make a count of the positions; the last writes `tensor`."""
    steps: list[tuple[str, str, tuple, tuple, str]] = [
        ("placed", "reshape", (Ref(0), list(tensor.shape)), (), "int64")
    ]
    if first:
        steps.append(("counted", "aten.add.Tensor", (Ref(0), first), (), "int64"))
    if tensor.dtype != "int64":
        to = (("dtype", f"torch.{tensor.dtype}"),)
        steps.append(("converted", "aten._to_copy", (Ref(0),), to, tensor.dtype))
    read = POSITIONS
    for number, (label, kind, arguments, keywords, dtype) in enumerate(steps):
        is_last = number == len(steps) - 1
        written = tensor.name if is_last else f"{tensor.name}/{label}"
        made = replace(
            operator, name=operator.name if is_last else f"{operator.name}/{label}", kind=kind, reads=(read,),
            writes=(written,), arguments=arguments, keywords=keywords, rule="", shape_argument=None,
        )  # fmt: skip
        yield made, Tensor(written, tensor.shape, dtype, Role.ACTIVATION)
        read = written


def _table(graph: Graph, operator: Operator) -> Operator | None:
    """A look-up of positions, for an operator that takes as many rows of a stored table as there are tokens."""
    if operator.kind != "aten.slice.Tensor" or not graph.tensors[operator.reads[0]].role.is_stored:
        return None
    source, result = graph.tensors[operator.reads[0]], graph.tensors[operator.writes[0]]
    given = operator.arguments[1:]
    dim, start, _, step = (*given, *(0, 0, None, 1)[len(given) :])
    if len(source.shape) != 2 or dim not in (0, -2) or start or step != 1 or not has_tokens(result.shape):
        return None
    return replace(
        operator, kind="embedding", reads=(source.name, POSITIONS), arguments=(Ref(0), Ref(1)), keywords=()
    )


def longest_by_tables(graph: Graph) -> int:
    """The most tokens of a sequence for which every table of positions has a row; `LONGEST` where there is none."""
    counts = reached_by(graph, POSITIONS) - reached_by(graph, token_input(graph))
    limit = LONGEST
    for operator in graph.operators:
        if operator.kind == "embedding" and operator.reads[1] in counts:
            first = _row_of_first(graph, operator.reads[1])
            limit = min(limit, graph.tensors[operator.reads[0]].shape[0] - first)
    return limit


def _row_of_first(graph: Graph, rows: str) -> int:
    """The row that the first position looks up."""
    if rows == POSITIONS:
        return 0
    part = drop_unread(replace(graph, outputs=(rows,)))
    one = replace(for_tokens(part, 1), sizes={})
    return int(interpret(one, {POSITIONS: torch.zeros(1, dtype=torch.int64)})[rows])


def _check(graph: Graph) -> None:
    """Refuse what still depends on the number of tokens, and not on them."""
    constants = (name for o in graph.operators if o.kind == "full" for name in o.writes)
    data = reached_by(graph, *graph.inputs, *constants)
    for operator in graph.operators:
        if data.isdisjoint(operator.writes):
            continue
        for name in set(operator.reads) - data:
            if has_tokens(graph.tensors[name].shape):
                raise TraceError(
                    f"{operator.name!r} reads {graph.tensors[name]}, which depends on how many tokens there are, "
                    "but is neither a count of them nor a mask of an attention",
                    where=operator.source,
                    remedy="let the model compute positions with torch.arange, or look them up in a table by their "
                    "number",
                )
