"""Sample calls: Reading and writing at positions."""

from tests.ir.rule_cases.samples import case, distinct, index, real

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
}  # fmt: skip
