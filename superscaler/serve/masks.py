"""Masks: what the mask of an attention lets a token see, told from its values.

A mask that can be served depends on places alone: a token sees itself and those before it, all of them or the last
few (a sliding window). Which it is shows at lengths around every number the model's mask was made of.
"""

from collections.abc import Iterator

import torch

from superscaler.errors import TraceError
from superscaler.ir.graph import Graph, Operator
from superscaler.ir.size import Size
from superscaler.serve.data import values_at

_LARGEST = 8192
"""Tokens of the largest mask that is made."""
_SMALL = (2, 7, 64)


def window_of(graph: Graph, attention: Operator, data: set[str]) -> int:
    """How many places back a token sees, itself included; 0: to the first.

    Args:
        graph: Of one sequence.
        attention: An operator of the kind `attention`.
        data: Tensors that depend on the user's tokens.

    Raises:
        TraceError: A token sees later ones, or something else than those before it.
    """
    if attention.keyword("causal"):
        return 0
    if len(attention.reads) < 4:
        raise _unservable(attention, "every token sees all others, also those behind it")
    mask = attention.reads[3]
    if mask in data:
        raise _unservable(attention, f"its mask {graph.tensors[mask]} depends on the tokens")
    wide = [number for number in _numbers(graph, mask) if number > max(_SMALL)]
    lengths = [*_SMALL, *(number + 2 for number in wide if number + 2 <= _LARGEST)]
    seen = {length: _seen(graph, attention, mask, length) for length in lengths}
    largest = seen[max(lengths)]
    window = int(largest.sum(-1).max())
    window = 0 if window == len(largest) else window
    for found in seen.values():
        if not torch.equal(found, _causal(len(found), window)):
            raise _unservable(attention, "its mask lets a token see something else than those before it")
    return window


def _seen(graph: Graph, attention: Operator, mask: str, length: int) -> torch.Tensor:
    """Which token sees which, [length, length]."""
    found = values_at(graph, (mask,), length)
    if found is None:
        raise _unservable(attention, f"its mask {graph.tensors[mask]} depends on weights")
    (value,) = found
    if value.dtype != torch.bool:
        if not bool(((value == 0) | (value <= torch.finfo(value.dtype).min / 2)).all()):
            raise _unservable(attention, f"its mask {graph.tensors[mask]} adds to scores, as ALiBi does")
        value = value == 0
    value = value.expand(*value.shape[:-2], length, length).reshape(-1, length, length)
    if not bool((value == value[0]).all()):
        raise _unservable(attention, f"its mask {graph.tensors[mask]} differs between heads")
    return value[0]


def _causal(length: int, window: int) -> torch.Tensor:
    back = torch.arange(length)[:, None] - torch.arange(length)
    return (back >= 0) & (back < (window or length))


def _numbers(graph: Graph, mask: str) -> list[int]:
    """The whole numbers that stand in the operators a mask is made of."""
    wanted, found = {mask}, set()
    for operator in reversed(graph.operators):
        if not wanted.isdisjoint(operator.writes):
            wanted.update(operator.reads)
            found.update(abs(int(number)) for number in _plain_numbers(operator.arguments))
    return sorted(found)


def _plain_numbers(value: object) -> Iterator[int]:
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _plain_numbers(item)
    elif isinstance(value, int) and not isinstance(value, (bool, Size)):
        yield value


def _unservable(attention: Operator, why: str) -> TraceError:
    return TraceError(
        f"the attention {attention.name!r} cannot be served: {why}",
        where=attention.source,
        remedy="serve a causal language model: in its attention each token sees itself and those before it, "
        "perhaps within a window",
    )
