"""Sample calls: Reading and writing at positions."""

from tests.ir.rule_cases.samples import case, distinct, flags, index, ordered, real

CASES = {
    "aten.embedding_dense_backward": [
        case(real(3, 5, 4), index(7, 3, 5), 7, 2, False)
    ],
    "aten.gather": [
        case(real(3, 6, 4), 1, index(6, 3, 5, 4)),
        case(real(3, 6, 4), -1, index(4, 2, 6, 3)),
        case(real(3, 6), 0, index(3, 1, 6)),
        case(real(1, 6), 1, index(6, 1, 4)),
    ],
    "aten.scatter.src": [case(real(3, 6, 4), 1, distinct(6, 3, 2, 4), real(3, 2, 4)), case(real(3, 6), 1, distinct(6, 3, 2), real(3, 4))],
    "aten.scatter.value": [case(real(3, 6, 4), 1, index(6, 3, 2, 4), 2.5), case(real(3, 6), 0, index(3, 2, 4), 0)],
    "aten.scatter_add": [
        case(real(3, 6, 4), 1, index(6, 3, 8, 4), real(3, 8, 4)),
        case(real(3, 6, 4), -1, index(4, 2, 6, 3), real(2, 6, 3)),
        case(real(3, 6), 0, index(3, 2, 6), real(4, 6)),
    ],
    "aten.index.Tensor": [
        case(real(7, 4), [index(7, 3, 5)]),
        case(real(3, 7, 4), [None, index(7, 5)]),
        case(real(3, 7, 4), [None, index(7, 3, 1), index(4, 5)]),
        case(real(6, 7, 4), [index(6, 3, 1), None, index(4, 1, 5)]),
        case(real(6, 7), [index(6, 3, 1, 1), index(7, 1, 1, 5)]),
        case(real(6, 7, 4), [index(6, 1), index(7, 5)]),
        case(real(3, 4, 5), [None, index(4, 1)]),
    ],
    "aten.index_put": [
        case(real(7, 4), [index(7, 3, 5)], real(3, 5, 4), True),
        case(real(7, 4), [index(7, 3)], real(4), True),
        case(real(3, 7, 4), [None, index(7, 5)], real(3, 5, 4), True),
        case(real(6, 7, 4), [index(6, 3, 1), None, index(4, 1, 5)], real(3, 5, 7), True),
        case(real(6, 7, 4), [index(6, 5), index(7, 5)], real(5, 4), True),
        case(real(7, 4), [distinct(7, 5)], real(5, 4), False),
        case(real(3, 7, 4), [None, distinct(7, 5)], real(), False),
        case(real(7, 4), [distinct(7, 5)], real(1, 4)),
    ],
    "aten._unsafe_index.Tensor": [case(real(3, 7, 4), [None, index(7, 5)])],
    "aten._unsafe_index_put": [case(real(3, 7, 4), [None, index(7, 5)], real(3, 5, 4), True)],
    "aten.scatter_reduce.two": [
        case(real(3, 6, 4), 1, index(6, 3, 8, 4), real(3, 8, 4), "sum"),
        case(real(3, 6), 1, index(6, 3, 8), real(3, 8), "amax"),
        case(real(3, 6), 1, index(6, 3, 8), real(3, 8), "sum", include_self=False),
        case(real(3, 6), 0, index(3, 2, 6), real(2, 6), "prod"),
    ],
    "aten.index_select": [case(real(3, 6, 4), 1, index(6, 5)), case(real(6, 4), 0, index(6, 1)), case(real(3, 6), -1, index(6, 8))],
    "aten.index_add": [case(real(3, 6, 4), 1, index(6, 5), real(3, 5, 4)), case(real(6, 4), 0, index(6, 8), real(8, 4), alpha=2)],
    "aten.index_copy": [case(real(3, 6, 4), 1, distinct(6, 5), real(3, 5, 4)), case(real(6, 4), 0, distinct(6, 1), real(1, 4))],
    "aten.index_fill.int_Scalar": [case(real(3, 6, 4), 1, index(6, 5), 2.0)],
    "aten.index_fill.int_Tensor": [case(real(3, 6, 4), -1, index(4, 5), real())],
    "aten.take": [case(real(3, 4), index(12, 5, 2))],
    "aten.put": [case(real(3, 4), index(12, 5), real(5), True), case(real(3, 4), distinct(12, 5), real(5))],
    "aten.masked_scatter": [case(real(3, 4), flags(3, 4), real(12))],
    "aten.bucketize.Tensor": [case(real(3, 4), ordered(5)), case(real(3, 4), ordered(5), right=True)],
    "aten.searchsorted.Tensor": [case(ordered(5), real(3, 4)), case(ordered(3, 5), real(3, 4)), case(ordered(3, 2, 5), real(3, 2, 4), right=True)],
}  # fmt: skip
