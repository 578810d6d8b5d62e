"""Heads of keys and values that several heads of queries share are kept in the cache once, not once per query head."""

from dataclasses import replace

import torch

from superscaler.ir.graph import Graph, drop_unread
from superscaler.ir.interpret import interpret
from superscaler.ir.tensor import Role
from superscaler.serve.inputs import for_tokens

_COPIES = frozenset(
    {"reshape", "aten.expand", "aten.slice.Tensor", "aten.unsqueeze", "aten.repeat_interleave.self_int"}
)
_TRIED = 3


def unrepeated(graph: Graph, name: str) -> str:
    """The tensor [1, groups, tokens, width] of which `name` [1, heads, tokens, width] repeats each head in a row.

    It is `name` itself where no heads are repeated.
    """
    _, heads, tokens, width = graph.tensors[name].shape
    best, source = name, name
    while (writer := graph.writer.get(source)) is not None and writer.kind in _COPIES:
        source = writer.reads[0]
        shape = graph.tensors[source].shape
        if len(shape) == 4 and (shape[0], *shape[2:]) == (1, tokens, width) and heads % shape[1] == 0:
            if not _repeats(graph, source, name):
                break
            best = source
    return best


def _repeats(graph: Graph, source: str, name: str) -> bool:
    """Whether `name` is `source` with each head as often as it takes, in a row."""
    inside = replace(graph.tensors[source], role=Role.INPUT)
    part = drop_unread(
        replace(
            graph,
            operators=tuple(o for o in graph.operators if source not in o.writes),
            tensors={**graph.tensors, source: inside},
            inputs=(source,),
            outputs=(name,),
        )
    )
    part = replace(for_tokens(part, _TRIED), sizes={})
    shape = part.tensors[source].shape
    given = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    repeated = given.repeat_interleave(part.tensors[name].shape[1] // shape[1], dim=1)
    return torch.equal(interpret(part, {source: given})[name], repeated)
