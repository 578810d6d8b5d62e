"""Sample calls: pooling."""

import torch

from tests.ir.rule_cases.samples import case, derived, real


def max_pool_backward(*shape):
    def derive(draw):
        x = draw(*shape)
        y, indices = torch.ops.aten.max_pool2d_with_indices(x, [3, 3], [2, 2], [1, 1])
        return case(torch.ones_like(y), x, [3, 3], [2, 2], [1, 1], [1, 1], False, indices)

    return derived(derive)


CASES = {
    "aten.max_pool2d_with_indices": [
        case(real(3, 2, 6, 5), [3, 3], [2, 2], [1, 1]),
        case(real(4, 6, 6), [2, 2], [2, 2]),
        case(real(2, 4, 2, 2), [2, 2]),
    ],
    "aten.max_pool2d_with_indices_backward": [max_pool_backward(3, 2, 6, 5), max_pool_backward(4, 6, 6)],
}
