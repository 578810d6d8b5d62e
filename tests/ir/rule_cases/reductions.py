"""Sample calls: Reductions, softmax, sorting and running sums."""

import torch

from tests.ir.rule_cases.samples import case, derived, flags, real


def softmax_backward(forward, *shape, dim=1):
    def derive(draw):
        y = forward(draw(*shape), dim)
        return case(draw(*shape), y, dim, str(y.dtype))

    return derived(derive)


CASES = {
    "aten._softmax": [case(real(3, 4, 5), -1, False), case(real(3, 4, 5), 1, False)],
    "aten._softmax_backward_data": [softmax_backward(torch.softmax, 3, 4, 5), softmax_backward(torch.softmax, 3, 4, 5, dim=-1)],
    "aten._log_softmax": [case(real(3, 4), 1, False)],
    "aten._log_softmax_backward_data": [
        softmax_backward(torch.log_softmax, 3, 4, 1), softmax_backward(torch.log_softmax, 3, 4, 5, dim=0)
    ],
    "aten.sum": [case(real(3, 4)), case(flags(3, 4))],
    "aten.sum.dim_IntList": [
        case(real(3, 4, 5), [0, -1], False),
        case(real(3, 4, 5), [1], True),
        case(real(3, 1, 5), [1, 2]),
        case(real(3, 4), [], False),
    ],
    "aten.argmax": [case(real(3, 4, 5), 1), case(real(3, 4), -1, True), case(real(3, 4)), case(real(3, 4), None, True)],
    "aten.argmin": [case(real(3, 4, 5), 0), case(real(3, 4), 1, True), case(real(3, 4))],
    "aten.cumsum": [case(real(3, 4, 5), 1), case(real(3, 4), -1), case(flags(3, 4), 0)],
}  # fmt: skip
