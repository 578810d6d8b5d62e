"""Sample calls of every kind of operator, a file per family: kind -> cases."""

from tests.ir.rule_cases import (
    convolutions,
    indexing,
    losses,
    normalisation,
    pointwise,
    pooling,
    products,
    reductions,
    shapes,
    updates,
    whole_operators,
)

CASES = {
    **whole_operators.CASES,
    **products.CASES,
    **convolutions.CASES,
    **normalisation.CASES,
    **losses.CASES,
    **reductions.CASES,
    **pooling.CASES,
    **shapes.CASES,
    **indexing.CASES,
    **pointwise.CASES,
    **updates.CASES,
}
