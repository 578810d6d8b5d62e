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
    **{
        f"aten.{name}": [case(real(3, 4, 5), [0, -1]), case(real(3, 4), [1], True), case(real(3, 4), [0])]
        for name in ("amax", "amin", "logsumexp", "nansum")
    },
    "aten.count_nonzero": [case(flags(3, 4)), case(flags(3, 4), 1)],
    "aten.count_nonzero.dim_IntList": [case(flags(3, 4, 5), [0, 2])],
    **{f"aten.{name}": [case(real(3, 4))] for name in ("max", "min", "median", "prod")},
    "aten.aminmax": [case(real(3, 4), dim=1), case(real(3, 4), dim=0, keepdim=True), case(real(3, 4))],
    "aten.prod.dim_int": [case(real(3, 4, 5), 1), case(real(3, 4), 0, True)],
    **{f"aten.{name}": [case(flags(3, 4))] for name in ("any", "all")},
    **{f"aten.{name}.dim": [case(flags(3, 4, 5), 1), case(flags(3, 4), -1, True)] for name in ("any", "all")},
    **{f"aten.{name}.dims": [case(flags(3, 4, 5), [0, 1]), case(flags(3, 4), [1], True)] for name in ("any", "all")},
    **{
        f"aten.{name}.correction": [
            case(real(3, 4, 5), [1], correction=1), case(real(3, 4), [-1], correction=0, keepdim=True), case(real(3, 4)),
        ]
        for name in ("var", "std", "var_mean", "std_mean")
    },
    "aten.linalg_vector_norm": [case(real(3, 4), 2, [1]), case(real(3, 4, 5), 1, [0, 2], True), case(real(3, 4))],
    "aten.norm.Scalar": [case(real(3, 4)), case(real(3, 4), 3)],
    "aten.norm.ScalarOpt_dim": [case(real(3, 4), 2, [1]), case(real(3, 4), 1, [0], True)],
    **{
        f"aten.{name}": [case(real(3, 4, 5), 1), case(real(3, 4), -1, True)]
        for name in ("max.dim", "min.dim", "median.dim", "mode")
    },
    "aten.kthvalue": [case(real(3, 4, 5), 2, 1), case(real(3, 4), 2, 0, True), case(real(3, 4), 3)],
    "aten.topk": [case(real(3, 6, 4), 2, 1), case(real(3, 6), 6), case(real(3, 6), 1, 0, False)],
    "aten.sort": [case(real(3, 4, 5), 1), case(real(3, 4), -1, True)],
    "aten.sort.stable": [case(real(3, 4, 5), stable=True, dim=1, descending=True), case(real(3, 4), stable=True)],
    **{f"aten.{name}": [case(real(3, 4, 5), 1), case(real(3, 4), -1)] for name in ("cumprod", "cummax", "cummin", "logcumsumexp")},
    "aten.glu": [case(real(3, 4, 6), 1), case(real(3, 4))],
    "aten.glu_backward": [case(real(3, 2, 6), real(3, 4, 6), 1), case(real(3, 2), real(3, 4), -1)],
    "aten.linalg_cross": [case(real(4, 3), real(4, 3)), case(real(3, 4), real(3, 4), dim=0)],
    "aten.histc": [case(real(3, 4), 5, -2, 2), case(real(7), 4)],
}  # fmt: skip
