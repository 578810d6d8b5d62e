"""Sample calls: Matrix products."""

from tests.ir.rule_cases.samples import case, real

CASES = {
    "aten.mm": [case(real(3, 4), real(4, 5))],
    "aten.bmm": [case(real(2, 3, 4), real(2, 4, 5))],
    "aten.addmm": [
        case(real(5), real(3, 4), real(4, 5)),
        case(real(3, 5), real(3, 4), real(4, 5), beta=0.5, alpha=2),
        case(real(3, 1), real(3, 4), real(4, 5)),
        case(real(), real(3, 4), real(4, 5)),
    ],
    "aten.mv": [case(real(3, 4), real(4))],
    "aten.dot": [case(real(5), real(5))],
    "aten.baddbmm": [
        case(real(2, 3, 5), real(2, 3, 4), real(2, 4, 5)),
        case(real(2, 1, 5), real(2, 3, 4), real(2, 4, 5), beta=0.5, alpha=2.0),
        case(real(5), real(2, 3, 4), real(2, 4, 5), beta=1, alpha=0.25),
    ],
    "aten.addbmm": [case(real(3, 5), real(2, 3, 4), real(2, 4, 5)), case(real(5), real(2, 3, 4), real(2, 4, 5), beta=2.0)],
    "aten.addmv": [case(real(3), real(3, 4), real(4)), case(real(1), real(3, 4), real(4), beta=2, alpha=3)],
}  # fmt: skip
