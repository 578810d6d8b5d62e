"""Sample calls: Matrix products."""

import torch

from tests.ir.rule_cases.samples import case, derived, real


def cdist_backward(draw):
    first, second = draw(2, 3, 4), draw(2, 5, 4)
    return case(draw(2, 3, 5), first, second, 2.0, torch.cdist(first, second))


ENDS = torch.tensor([2, 2, 7], dtype=torch.int32)
"""Where the rows of each of three experts end; the second has none."""

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
    "aten.addr": [case(real(3, 4), real(3), real(4), beta=0.5), case(real(4), real(3), real(4))],
    "grouped_mm": [
        case(real(7, 4), real(3, 4, 5), ENDS),
        case(real(3, 4, 5), real(5, 7), ENDS),
        case(real(4, 7), real(7, 5), ENDS),
    ],
    "aten._cdist_forward": [case(real(2, 3, 4), real(2, 5, 4), 2.0, None), case(real(3, 4), real(5, 4), 1.0, 2)],
    "aten._cdist_backward": [derived(cdist_backward)],
    "aten._euclidean_dist": [case(real(2, 3, 4), real(2, 5, 4))],
    "aten.linalg_inv_ex": [derived(lambda draw: case(draw(3, 4, 4) + 4 * torch.eye(4)))],
    "aten.linalg_cholesky_ex": [derived(lambda draw: case(torch.eye(4, dtype=torch.float64) + (x := draw(3, 4, 4).double()) @ x.mT))],
    "aten.linalg_solve_triangular": [derived(lambda draw: case(draw(3, 4, 4) + 4 * torch.eye(4), draw(3, 4, 2), upper=True))],
}  # fmt: skip
