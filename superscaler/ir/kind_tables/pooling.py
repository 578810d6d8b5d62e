"""Pooling: windows overlap, so space is whole; batch and channels go along."""

from collections.abc import Sequence

from superscaler.ir.graph import Operator
from superscaler.ir.kind import Kind
from superscaler.ir.rules import Shape
from superscaler.ir.shape_rules import RuleFunction, across


def _space(rank: int) -> RuleFunction:
    """The last `rank` dims are whole, and of another size in every tensor."""

    def rule(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
        full = len(reads[0])
        return across(full, set(range(full - rank, full)), reads, writes)

    return rule


POOLING = {
    "aten.max_pool2d_with_indices": Kind(_space(2), outputs=("", "indices")),
    "aten.max_pool2d_with_indices_backward": Kind(_space(2)),
}
