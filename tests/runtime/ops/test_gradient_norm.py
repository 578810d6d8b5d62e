"""The norm of all gradients, and clipping by it, equal torch.nn.utils."""

import pytest
import torch

from superscaler.runtime import ops


@pytest.mark.parametrize("max_norm", [0.5, 1000.0])
def test_clipping_equals_torch(max_norm):
    torch.manual_seed(0)
    parameters = [torch.zeros(shape, dtype=torch.float64) for shape in ((3, 4), (5,), ())]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    gradients = [parameter.grad.clone() for parameter in parameters]
    norm = ops.gradient_norm(ops.total(ops.squared_norms(gradients)))
    coefficient = ops.clip_coefficient(norm, max_norm)
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(parameters, max_norm), rtol=1e-14, atol=0)
    for gradient, parameter in zip(gradients, parameters, strict=True):
        torch.testing.assert_close(gradient * coefficient, parameter.grad, rtol=1e-14, atol=0)


def test_squares_of_small_floats_are_added_in_float32():
    g = torch.full((100_000,), 0.01, dtype=torch.bfloat16)
    square = ops.squared_norm(g)
    assert square.dtype == torch.float32
    torch.testing.assert_close(square.double(), g.double().square().sum(), rtol=1e-5, atol=0)
