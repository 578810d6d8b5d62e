"""One sequence: the batch of a traced model becomes one row, whose tokens are those of all sequences.

What the model does to one row it does to each, or `tokenwise` finds the operator that mixes them.
"""

from dataclasses import replace

from superscaler.errors import TraceError
from superscaler.ir.graph import Graph
from superscaler.ir.size import Requirement, Size, at_sizes, evaluate, symbols_in
from superscaler.ir.tensor import DTYPE_BYTES
from superscaler.serve.inputs import TOKENS

LONGEST = 1 << 20
"""Tokens beyond which nobody asks whether a sequence may be longer."""


def one_sequence(graph: Graph) -> tuple[Graph, int]:
    """The graph for one row of *tokens* tokens, and how long a sequence it allows.

    Raises:
        TraceError: The graph trains, or reads anything but tokens [batch, seq] of which `seq` varies.
    """
    if graph.is_training:
        raise TraceError(
            f"the graph {graph.name!r} is a training step, which cannot be served",
            remedy="trace the model without an optimizer: ss.trace(model, args, dynamic=...)",
        )
    batch, seq = _dims(graph)
    sizes: dict[str, int] = {str(seq): TOKENS} | ({str(batch): 1} if isinstance(batch, Size) else {})
    one = at_sizes(graph, sizes)
    longest = _longest(graph.requirements, str(seq), str(batch))
    return replace(one, sizes={str(TOKENS): int(TOKENS)}, requirements=()), longest


def _dims(graph: Graph) -> tuple[int, int]:
    example = 'ss.trace(model, (tokens,), dynamic={"tokens": ("batch", "seq")})'
    if len(graph.inputs) != 1:
        raise TraceError(
            f"the graph {graph.name!r} reads {', '.join(graph.inputs)}; a model that is served reads tokens alone",
            remedy=f"trace it on tokens only: {example}",
        )
    (name,) = graph.inputs
    tensor = graph.tensors[name]
    whole = "float" not in tensor.dtype and tensor.dtype in DTYPE_BYTES
    if len(tensor.shape) != 2 or not whole or not isinstance(tensor.shape[1], Size):
        raise TraceError(
            f"the input {tensor} is not whole numbers [batch, seq] of which seq varies",
            remedy=f"trace the model so: {example}",
        )
    batch, seq = tensor.shape
    if not isinstance(batch, Size) and batch != 1:
        raise TraceError(
            f"the input {tensor} holds {batch} sequences, and only so many",
            remedy=f"let the batch vary, or trace a batch of one: {example}",
        )
    return batch, seq


def _longest(requirements: tuple[Requirement, ...], seq: str, batch: str) -> int:
    """The most tokens a sequence may have: the most for which the model computes what was traced.

    How few it may have is of no matter: a model in which no token sees a later one computes the first of
    many tokens as it would compute it alone.
    """

    def allows(requirement: Requirement, length: int) -> bool:
        return bool(evaluate(requirement.condition, {seq: length, batch: 2}))

    upper = [one for one in requirements if seq in symbols_in(one.condition)]
    upper = [one for one in upper if not allows(one, LONGEST)]
    low, high = 2, LONGEST
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if all(allows(one, middle) for one in upper) else (low, middle - 1)
    return low
