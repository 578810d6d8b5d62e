"""Attention over a cache: each attention keeps the keys and values it is given, and sees those of earlier steps."""

from dataclasses import dataclass, replace

from superscaler.errors import TraceError
from superscaler.ir.graph import Graph, Operator, Ref, drop_unread
from superscaler.ir.tensor import Role, Tensor
from superscaler.serve.data import reached_by
from superscaler.serve.inputs import ATTENTION_INPUTS, token_input
from superscaler.serve.masks import window_of
from superscaler.serve.shared_heads import unrepeated

KEYS, VALUES = "cached_keys", "cached_values"
"""What the caches of an attention are called, behind the path of its module."""


@dataclass(frozen=True)
class CacheSize:
    """How much the caches hold."""

    pages: int
    page_size: int = 16
    """Tokens of one sequence on a page."""

    @classmethod
    def of_tokens(cls, tokens: int, page_size: int = 16) -> "CacheSize":
        """As many pages as so many tokens need."""
        return cls(-(-tokens // page_size), page_size)

    @property
    def slots(self) -> int:
        """Tokens of all sequences together."""
        return self.pages * self.page_size


DEFAULT_CACHE = CacheSize(pages=256)


def with_caches(graph: Graph, cache: CacheSize) -> Graph:
    """The graph with paged attentions, each with a cache of keys and one of values [slots, heads, width].

    The caches are buffers that the attention writes into; as any buffer they are cut, placed and accounted for with
    the operators that read them.

    Raises:
        TraceError: The model has no attention, or one that cannot be served.
    """
    data = reached_by(graph, token_input(graph))
    operators: list[Operator] = []
    caches: list[Tensor] = []
    for operator in graph.operators:
        if operator.kind != "attention":
            operators.append(operator)
            continue
        window = window_of(graph, operator, data)
        keys, values = (unrepeated(graph, name) for name in operator.reads[1:3])
        own = _caches(graph, operator, keys, values, cache, taken={tensor.name for tensor in caches})
        caches += own
        reads = (operator.reads[0], keys, values, *(tensor.name for tensor in own), *ATTENTION_INPUTS)
        options = (("page_size", cache.page_size), ("scale", operator.keyword("scale")), ("window", window))
        operators.append(
            replace(
                operator,
                kind="paged_attention",
                reads=reads,
                writes=operator.writes[:1],
                arguments=tuple(map(Ref, range(len(reads)))),
                keywords=options,
            )
        )
    if not caches:
        raise TraceError(
            f"the graph {graph.name!r} has no attention that is one operator, so there is nothing to keep of "
            "earlier tokens",
            remedy="let the model call F.scaled_dot_product_attention; for a model of transformers that is "
            'attn_implementation="sdpa"',
        )
    names = [tensor.name for tensor in caches]
    return drop_unread(
        replace(
            graph,
            operators=tuple(operators),
            tensors={**{tensor.name: tensor for tensor in caches}, **graph.tensors},
            initialisers={**graph.initialisers, **dict.fromkeys(names, (("fill_", 0.0),))},
            saved_as={**graph.saved_as, **dict.fromkeys(names, ())},
        )
    )


def caches_of(operator: Operator) -> tuple[str, ...]:
    """The caches of keys and of values that an operator of a lowered graph writes into; none of most."""
    return operator.reads[3:5] if operator.kind == "paged_attention" else ()


def _caches(
    graph: Graph, operator: Operator, keys: str, values: str, cache: CacheSize, taken: set[str]
) -> list[Tensor]:
    found = []
    for label, name in ((KEYS, keys), (VALUES, values)):
        _, heads, _, width = graph.tensors[name].shape
        own = ".".join(filter(None, (operator.module, label)))
        number = 2
        while own in taken or own in graph.tensors:
            own, number = f"{own.rstrip('_0123456789')}_{number}", number + 1
        found.append(Tensor(own, (cache.slots, heads, width), graph.tensors[name].dtype, Role.BUFFER))
    return found
