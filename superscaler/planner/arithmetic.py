"""Arithmetic: floating-point operations of operators, by their rules, or by shapes where a rule does not tell."""

from collections.abc import Callable, Sequence
from math import prod

from superscaler.ir.axes import Axes
from superscaler.ir.float8 import WIDE
from superscaler.ir.graph import Graph, Operator
from superscaler.ir.kinds import row_of
from superscaler.planner.device import FLOAT8
from superscaler.planner.efficiency import OperatorClass
from superscaler.planner.operator_class import class_of

Shape = tuple[int, ...]
ATTENTION_BACKWARD = 2.5
"""How much more an attention's backward is: five products for two."""


def arithmetic(axes: Axes, operator: Operator) -> float:
    """Floating-point operations of a whole operator.

    A product takes its operands in one by one, each time a product of two: so attention is two, of queries with keys
    and of the scores with values. What is no product does so much per element.
    """
    if operator.kind in BY_SHAPES:
        reads, writes = (
            [_shape(axes, name) for name in names] for names in (operator.reads, operator.writes)
        )
        return BY_SHAPES[operator.kind](operator, reads, writes)
    row = row_of(operator)
    if not class_of(operator).is_product:
        return row.flops_per_point * _elements(axes, operator)
    rule, letters = axes.rules[operator.name], axes.letters[operator.name]
    first, *others = [set(term.letters) for term in rule.reads] or [set()]
    written = {letter for term in rule.writes for letter in term.letters}
    held, steps = first, []
    for number, other in enumerate(others):
        steps.append(held | other)
        held = steps[-1] & written.union(*others[number + 1 :])
    points = sum(
        prod(axis.size for letter in step for axis in letters[letter]) for step in steps or [held | written]
    )
    return row.flops_per_point * points


def arithmetic_dtype(graph: Graph, operator: Operator) -> str:
    """In what an operator computes: the type of its result, unless it multiplies in float8."""
    return FLOAT8 if operator.kind in WIDE else graph.tensors[operator.writes[0]].dtype


def attention_scores(axes: Axes, operator: Operator) -> int:
    """How many scores an attention, or its backward, has: a number per query, key and head."""
    first = 0 if operator.kind == "attention" else 1
    q, k = (_shape(axes, name) for name in operator.reads[first : first + 2])
    return prod(q[:3]) * k[2]


def share_of_caches(axes: Axes, operator: Operator) -> float:
    """Which part of its caches a paged attention reads: as many pages as the table of its sequences has."""
    slots, table = _shape(axes, operator.reads[3])[0], _shape(axes, operator.reads[8])
    return min(1.0, prod(table) * operator.keyword("page_size") / slots)


def _elements(axes: Axes, operator: Operator) -> int:
    """Of the largest tensor; where elements of a table are picked, or added to some, of what is picked or added."""
    reads, writes = (
        [prod(axes.fine_sizes(name)) for name in names] for names in (operator.reads, operator.writes)
    )
    if class_of(operator) is OperatorClass.GATHER:
        return min(reads[0], writes[0])
    return max((*reads, *writes))


def _shape(axes: Axes, tensor: str) -> Shape:
    return tuple(prod(axis.size for axis in parts) for parts in axes.dims[tensor])


def _convolution(operator: Operator, x: Shape, weight: Shape, out: Shape) -> float:
    """Each element of the smaller side meets the whole kernel, of the channels of its group."""
    is_transposed = operator.arguments[-3]
    return 2.0 * prod(x if is_transposed else out) * prod(weight[1:])


def _attention(q: Shape, k: Shape, v: Shape) -> float:
    scores = prod(q[:3]) * k[2]
    return 2.0 * scores * (q[3] + v[3])


def _paged_attention(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> float:
    """Every new token meets as many keys as the pages of a sequence can hold: how many they do, data tells."""
    (_, heads, tokens, width), pages = reads[0], reads[8]
    keys = pages[1] * operator.keyword("page_size")
    return 2.0 * heads * tokens * keys * (width + writes[0][3])


def _grouped_mm(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> float:
    """Every row meets the matrix of one expert."""
    a, b = reads[:2]
    return 2.0 * prod(a[-2:]) * b[-1]


BY_SHAPES: dict[str, Callable[[Operator, Sequence[Shape], Sequence[Shape]], float]] = {
    "aten.convolution": lambda one, reads, writes: _convolution(one, reads[0], reads[1], writes[0]),
    "convolution_input_gradient": lambda one, reads, writes: _convolution(one, writes[0], reads[1], reads[0]),
    "convolution_weight_gradient": lambda one, reads, writes: _convolution(
        one, reads[1], writes[0], reads[0]
    ),
    "attention_backward": lambda one, reads, writes: ATTENTION_BACKWARD * _attention(*reads[1:4]),
    "grouped_mm": _grouped_mm,
    "paged_attention": _paged_attention,
}
"""Kinds whose letters say too much: dims that slide along each other, or pieces that data assigns."""
