"""Each gradient of a linear layer equals what autograd computes."""

import pytest
import torch
import torch.nn.functional as F

from superscaler.runtime import ops


@pytest.mark.parametrize("lead", [(6,), (2, 3), (2, 1, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_gradients_equal_autograd(lead, dtype):
    x = torch.randn(*lead, 5, dtype=dtype, requires_grad=True)
    weight = torch.randn(4, 5, dtype=dtype, requires_grad=True)
    bias = torch.randn(4, dtype=dtype, requires_grad=True)
    y = F.linear(x, weight, bias)
    dy = torch.randn_like(y)
    y.backward(dy)
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if dtype.itemsize == 2 else {}
    torch.testing.assert_close(ops.linear_input_gradient(dy, weight.detach()), x.grad, **tolerance)
    torch.testing.assert_close(ops.linear_weight_gradient(dy, x.detach()), weight.grad, **tolerance)
    torch.testing.assert_close(ops.linear_bias_gradient(dy), bias.grad, **tolerance)


def test_gradients_accept_expanded_and_transposed_gradients():
    x, weight = torch.randn(3, 2, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    dy = torch.randn(2, 3, 4, dtype=torch.float64).transpose(0, 1)
    torch.testing.assert_close(ops.linear_input_gradient(dy, weight), torch.einsum("abn,nk->abk", dy, weight))
    torch.testing.assert_close(ops.linear_weight_gradient(dy, x), torch.einsum("abn,abk->nk", dy, x))
    ones = torch.ones((), dtype=torch.float64).expand(3, 2, 4)
    torch.testing.assert_close(ops.linear_bias_gradient(ones), torch.full((4,), 6.0, dtype=torch.float64))
