"""The operator table: per kind its rule in index notation, its function by name, and what a cut changes in its call.

To add an operator, add a row to the table of its family in `superscaler.ir.kind_tables`.
"""

import re
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from superscaler.errors import TraceError
from superscaler.ir.graph import Graph, Operator, Ref
from superscaler.ir.kind import Kind, RuleSource
from superscaler.ir.kind_tables.convolutions import CONVOLUTIONS
from superscaler.ir.kind_tables.indexing import INDEXING
from superscaler.ir.kind_tables.losses import LOSSES
from superscaler.ir.kind_tables.normalisation import NORMALISATION
from superscaler.ir.kind_tables.pointwise import POINTWISE
from superscaler.ir.kind_tables.pooling import POOLING
from superscaler.ir.kind_tables.products import PRODUCTS
from superscaler.ir.kind_tables.reductions import REDUCTIONS
from superscaler.ir.kind_tables.shapes import SHAPES
from superscaler.ir.kind_tables.updates import UPDATES
from superscaler.ir.kind_tables.whole_operators import WHOLE_OPERATORS
from superscaler.ir.rules import Rule, RuleMismatch, Shape, bind

__all__ = [
    "KINDS",
    "VIEWS",
    "Kind",
    "RuleSource",
    "bind_row",
    "call_name",
    "declare_rule",
    "is_linear",
    "linear_reads",
    "output_labels",
    "resolve",
    "row_of",
    "rule_of",
]

KINDS: dict[str, Kind] = {
    **WHOLE_OPERATORS,
    **PRODUCTS,
    **CONVOLUTIONS,
    **NORMALISATION,
    **LOSSES,
    **REDUCTIONS,
    **POOLING,
    **SHAPES,
    **INDEXING,
    **POINTWISE,
    **UPDATES,
}

VIEWS = {
    "aten.t", "aten.transpose.int", "aten.permute", "aten.unsqueeze", "aten.squeeze", "aten.squeeze.dim",
    "aten.expand", "aten.slice.Tensor", "aten.select.int",
}  # fmt: skip
"""Kinds whose result shares its operand's memory; ``reshape`` does so where the operand is contiguous."""


def rule_of(operator: Operator, graph: Graph) -> tuple[Rule, dict[str, int]]:
    """The operator's rule, bound to its shapes, and the size of each letter.

    Raises:
        TraceError: The kind has no row, or its rule does not fit the call.
    """
    reads = [graph.tensors[name].shape for name in operator.reads]
    writes = [graph.tensors[name].shape for name in operator.writes]
    try:
        return bind_row(row_of(operator), operator, reads, writes)
    except RuleMismatch as mismatch:
        raise TraceError(
            f"the rule of {operator.kind} does not fit the operator {operator.name!r}: {mismatch}",
            where=operator.source,
            remedy="its rule (in superscaler/ir/kind_tables, or declared by ss.rule) must name each dim of each tensor",
        ) from None


def row_of(operator: Operator) -> Kind:
    """What is known of an operator: its own rule, if it was found or declared for it, else the row of its kind.

    Raises:
        TraceError: There is neither.
    """
    if operator.rule:
        return Kind(
            operator.rule, shape_argument=operator.shape_argument, flops_per_point=_flops(operator.rule)
        )
    if operator.kind not in KINDS:
        raise TraceError(
            f"the operator {operator.name!r} is of a kind without a rule: {operator.kind}",
            where=operator.source,
            remedy="trace the model anew, which finds rules by experiment, or declare one before: "
            f'ss.rule("b s d -> b s d")("{operator.kind}")',
        )
    return KINDS[operator.kind]


def _flops(rule: str) -> float:
    """A multiplication and an addition where two tensors meet in a contracted letter."""
    left, _, right = rule.partition("->")
    letters = [set(re.findall(r"[a-z]\w*", term)) for term in left.split(",")]
    written = set(re.findall(r"[a-z]\w*", right))
    meet = {letter for one, other in combinations(letters, 2) for letter in one & other}
    return 2.0 if meet - written else 1.0


def bind_row(
    row: Kind, operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]
) -> tuple[Rule, dict[str, int]]:
    """The rule of a row, bound to the shapes of a call, and the size of each letter.

    Raises:
        RuleMismatch: The rule does not fit the shapes.
    """
    text = row.rule if isinstance(row.rule, str) else row.rule(operator, reads, writes)
    return bind(text, reads, writes)


def is_linear(operator: Operator) -> bool:
    """Whether the call maps summands of all it reads to summands of what it writes.

    ``x + 1`` is of a linear kind and is not linear: every summand would get its own 1.
    """
    if not row_of(operator).linear:
        return False
    if operator.kind in ("aten.add.Tensor", "aten.sub.Tensor"):
        return all(isinstance(argument, Ref) for argument in operator.arguments[:2])
    return True


def linear_reads(operator: Operator) -> tuple[int, ...]:
    """Positions of the tensors read that are summands where those written are; none if the call is not linear."""
    return tuple(range(len(operator.reads))) if is_linear(operator) else row_of(operator).linear_in


def declare_rule(kind: str, rule: str, call: str = "", shape_argument: int | None = None) -> None:
    """Add a row for an operator of one's own: ``declare_rule("mylib.scale", "b s d, d -> b s d")``."""
    KINDS[kind] = Kind(rule, call, shape_argument=shape_argument, declared=True)


def output_labels(kind: str, count: int) -> tuple[str, ...]:
    """A label for each of `count` results."""
    known = KINDS[kind].outputs if kind in KINDS else ()
    if len(known) >= count:
        return known[:count]
    return ("",) if count == 1 else tuple(str(i) for i in range(count))


def call_name(kind: str) -> str:
    """The function of a kind, or of a cast, as generated source names it."""
    if kind in ("float8_rows", "float8_columns"):
        return f"ops.{kind}"
    return (KINDS[kind].call if kind in KINDS else "") or f"torch.ops.{kind}"


def resolve(call: str) -> Any:
    """The function behind the name generated source uses: ``F.gelu``, ``ops.attention``, ``torch.add``."""
    from importlib import import_module

    root, _, path = call.partition(".")
    modules = {"F": "torch.nn.functional", "ops": "superscaler.runtime.ops", "torch": "torch"}
    value = import_module(modules[root])
    for name in path.split("."):
        value = getattr(value, name)
    return value
