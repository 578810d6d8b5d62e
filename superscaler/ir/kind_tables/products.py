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


def _addr(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    return f"{broadcast(reads[0], ['m', 'n'])}, m, n -> m n"


def _grouped_mm(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """A product per expert; where rows or columns lie expert by expert, as the last operand tells, they are whole."""
    return {
        (2, 3): "row! k, experts! k n, experts! -> row! n",
        (3, 2): "experts! m k, k column!, experts! -> m column!",
        (2, 2): "m row!, row! n, experts! -> experts! m n",
    }[len(reads[0]), len(reads[1])]


PRODUCTS = {
    "aten.mm": Kind("m k, k n -> m n", "torch.mm", flops_per_point=2),
    "aten.bmm": Kind("b m k, b k n -> b m n", "torch.bmm", flops_per_point=2),
    "aten.mv": Kind("m k, k -> m", "torch.mv", flops_per_point=2),
    "aten.dot": Kind("k, k -> .", "torch.dot", flops_per_point=2),
    "aten.addmm": Kind(_added("m n", "m k, k n"), "torch.addmm", flops_per_point=2),
    "aten.baddbmm": Kind(_added("b m n", "b m k, b k n"), "torch.baddbmm", flops_per_point=2),
    "aten.addbmm": Kind(_added("m n", "b m k, b k n"), "torch.addbmm", flops_per_point=2),
    "aten.addmv": Kind(_added("m", "m k, k"), "torch.addmv", flops_per_point=2),
    "aten.addr": Kind(_addr, "torch.addr", flops_per_point=2),
    "grouped_mm": Kind(_grouped_mm, "ops.grouped_mm", flops_per_point=2),
    "aten._cdist_forward": Kind("*b m k!, *b n k! -> *b m n", flops_per_point=3),
    "aten._cdist_backward": Kind("*b m n, *b m k!, *b n k!, *b m n -> *b m k", flops_per_point=3),
    "aten._euclidean_dist": Kind("*b m k!, *b n k! -> *b m n", flops_per_point=3),
    "aten.linalg_inv_ex": Kind("*b i! j! -> *b i! j!, *b", "torch.linalg.inv_ex", ("", "info")),
    "aten.linalg_cholesky_ex": Kind("*b i! j! -> *b i! j!, *b", "torch.linalg.cholesky_ex", ("", "info")),
    "aten.linalg_solve_triangular": Kind("*b i! j!, *b k! l! -> *b k! l!", "torch.linalg.solve_triangular"),
}  # fmt: skip
