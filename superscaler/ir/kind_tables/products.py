"""Matrix products."""

from collections.abc import Sequence

from superscaler.ir.graph import Operator
from superscaler.ir.kind import Kind
from superscaler.ir.rules import Shape
from superscaler.ir.shape_rules import RuleFunction, broadcast


def _added(result: str, contraction: str) -> RuleFunction:
    """``beta * summand + alpha * product``: the summand broadcasts, and enters once where the product is in summands."""

    def rule(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
        return f"+{broadcast(reads[0], result.split())}, {contraction} -> {result}"

    return rule


PRODUCTS = {
    "aten.mm": Kind("m k, k n -> m n", "torch.mm", flops_per_point=2),
    "aten.bmm": Kind("b m k, b k n -> b m n", "torch.bmm", flops_per_point=2),
    "aten.mv": Kind("m k, k -> m", "torch.mv", flops_per_point=2),
    "aten.dot": Kind("k, k -> .", "torch.dot", flops_per_point=2),
    "aten.addmm": Kind(_added("m n", "m k, k n"), "torch.addmm", flops_per_point=2),
    "aten.baddbmm": Kind(_added("b m n", "b m k, b k n"), "torch.baddbmm", flops_per_point=2),
    "aten.addbmm": Kind(_added("m n", "b m k, b k n"), "torch.addbmm", flops_per_point=2),
    "aten.addmv": Kind(_added("m", "m k, k"), "torch.addmv", flops_per_point=2),
}  # fmt: skip
