"""Which class of operators a kind belongs to, from the family of operators whose table its row is in."""

from superscaler.ir.float8 import FLOAT8, WIDE
from superscaler.ir.graph import Operator
from superscaler.ir.kind_tables.convolutions import CONVOLUTIONS
from superscaler.ir.kind_tables.indexing import INDEXING
from superscaler.ir.kind_tables.pooling import POOLING
from superscaler.ir.kind_tables.products import PRODUCTS
from superscaler.ir.kind_tables.reductions import REDUCTIONS
from superscaler.ir.kinds import row_of
from superscaler.ir.optimizers import OPTIMIZERS
from superscaler.planner.efficiency import OperatorClass

FAMILIES = {
    OperatorClass.MATMUL: (PRODUCTS, *FLOAT8, *WIDE),
    OperatorClass.ATTENTION: (
        (), "attention", "attention_backward", "attention_mask_gradient", "paged_attention",
    ),
    OperatorClass.CONVOLUTION: (CONVOLUTIONS,),
    OperatorClass.REDUCTION: (
        {**REDUCTIONS, **POOLING},
        "linear_bias_gradient", "squared_norm", "count_nonfinite", "channel_sums", "channel_squares",
    ),
    OperatorClass.GATHER: (INDEXING, "embedding", "embedding_backward"),
    OperatorClass.UPDATE: (OPTIMIZERS,),
}  # fmt: skip
"""Class -> the tables whose kinds are of it, and kinds of other tables; all others work point by point."""
CLASS_OF_KIND = {
    kind: operator_class for operator_class, (table, *kinds) in FAMILIES.items() for kind in (*table, *kinds)
}


def class_of(operator: Operator) -> OperatorClass:
    """The class of an operator; one with a rule of its own is a product if tensors meet in a contracted letter."""
    if operator.kind in CLASS_OF_KIND:
        return CLASS_OF_KIND[operator.kind]
    is_product = bool(operator.rule) and row_of(operator).flops_per_point > 1
    return OperatorClass.MATMUL if is_product else OperatorClass.POINTWISE
