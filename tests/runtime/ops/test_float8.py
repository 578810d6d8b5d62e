"""Linear layers in float8 are products of the nearest float8 numbers under the largest scale that is a power of two.

The truth here rounds by brute force, to the nearest in the list of all float8 numbers, and multiplies in float64.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from superscaler.errors import BuildError
from superscaler.runtime import ops
from superscaler.runtime.ops import float8

NUMBERS = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
NUMBERS = NUMBERS[NUMBERS.isfinite()].unique()
SIZES = [((48,), 64, 32), ((2, 24), 32, 48), ((5,), 21, 7), ((3, 1, 2), 16, 50)]
"""Leading dims, inputs, outputs; the latter two as a plan's cuts may leave them."""


def rounded(x: Tensor) -> Tensor:
    """Each row of a matrix as float8 holds it under its scale, in float64; ties go to the even mantissa."""
    rows = []
    for row in x.double():
        factor = 2.0 ** math.floor(math.log2(448.0 / row.abs().max().item()))
        distance = ((row * factor).unsqueeze(1) - NUMBERS).abs()
        order = distance.sort(dim=1, stable=True)
        is_tie = order.values[:, 0] == order.values[:, 1]
        is_odd = (NUMBERS[order.indices[:, 0]].to(torch.float8_e4m3fn).view(torch.uint8) & 1).bool()
        rows.append(NUMBERS[order.indices.gather(1, (is_tie & is_odd).long().unsqueeze(1))[:, 0]] / factor)
    return torch.stack(rows)


class Truth(torch.autograd.Function):
    """The layer and its gradients as one writes them down, in float64."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return (rounded(x.flatten(0, -2)) @ rounded(weight).T + bias.double()).unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        flat = dy.flatten(0, -2)
        dx = (rounded(flat) @ rounded(weight.T).T).unflatten(0, x.shape[:-1])
        return dx, rounded(flat.T) @ rounded(x.flatten(0, -2).T).T, flat.double().sum(0)


def drawn(lead, inputs, outputs):
    """x, weight, bias and dy; rows and columns of all sizes, so that no scale serves two."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        for dim in range(len(shape)):
            sizes = torch.linspace(-4, 4, shape[dim], dtype=torch.float64).exp2()
            values *= sizes.view([-1 if i == dim else 1 for i in range(len(shape))])
        return values.bfloat16()

    return draw(*lead, inputs), draw(outputs, inputs), draw(outputs), draw(*lead, outputs)


def close(actual, expected):
    """Up to the rounding of the result to bfloat16, and of sums in float32."""
    assert actual.dtype == torch.bfloat16
    scale = expected.abs().max().item()
    torch.testing.assert_close(actual.double(), expected.double(), rtol=2.0**-8, atol=1e-6 * scale)


def check_against_truth(lead, inputs, outputs):
    x, weight, bias, dy = drawn(lead, inputs, outputs)
    close(ops.linear_float8(x, weight, bias), Truth.apply(x, weight, bias))
    leaves = [value.clone().requires_grad_() for value in (x.double(), weight.double(), bias.double())]
    Truth.apply(*leaves).backward(dy.double())
    close(ops.linear_float8_input_gradient(dy, weight), leaves[0].grad)
    close(ops.linear_float8_weight_gradient(dy, x), leaves[1].grad)


@pytest.mark.parametrize(("lead", "inputs", "outputs"), SIZES)
def test_products_are_those_of_the_nearest_float8_numbers(lead, inputs, outputs):
    check_against_truth(lead, inputs, outputs)


@pytest.mark.parametrize(("lead", "inputs", "outputs"), SIZES)
def test_cpus_without_the_kernel_give_the_same(lead, inputs, outputs, monkeypatch):
    monkeypatch.setattr(float8, "_CPU_HAS_KERNEL", False)
    monkeypatch.delattr(torch, "_scaled_mm")
    check_against_truth(lead, inputs, outputs)


def test_the_error_is_that_of_three_bits_of_mantissa():
    """A number is rounded by 2^-4 of its power of two at most, by some 2.6% in the mean square; two of them are."""
    torch.manual_seed(0)
    x, weight = torch.randn(256, 512).bfloat16(), torch.randn(128, 512).bfloat16()
    exact = x.double() @ weight.double().T
    error = (ops.linear_float8(x, weight).double() - exact).norm() / exact.norm()
    assert 0.03 < error < 0.045
    assert (F.linear(x, weight).double() - exact).norm() / exact.norm() < 0.003


def test_a_large_token_does_not_spoil_the_others():
    """As one scale for the whole tensor would."""
    torch.manual_seed(0)
    x, weight = torch.randn(32, 64).bfloat16(), torch.randn(48, 64).bfloat16()
    alone = ops.linear_float8(x, weight)
    x[7] *= 2.0**20
    assert torch.equal(ops.linear_float8(x, weight)[torch.arange(32) != 7], alone[torch.arange(32) != 7])


@pytest.mark.parametrize("size", [2.0**-100, 2.0**100])
def test_scales_reach_as_far_as_bfloat16(size):
    torch.manual_seed(0)
    x, weight = torch.randn(32, 64).bfloat16(), torch.randn(48, 64).bfloat16()
    assert torch.equal(ops.linear_float8(x * size, weight) / size, ops.linear_float8(x, weight))


def test_rows_of_zeros_and_of_nothing_but_the_smallest_give_numbers():
    x, weight = torch.zeros(16, 32).bfloat16(), torch.ones(48, 32).bfloat16()
    bias = torch.arange(48).bfloat16()
    assert torch.equal(ops.linear_float8(x, weight, bias), bias.expand(16, 48))
    x[3] = torch.finfo(torch.bfloat16).smallest_normal
    assert torch.equal(ops.linear_float8(x, weight), F.linear(x, weight))
    assert torch.equal(ops.linear_float8_weight_gradient(x, x), torch.zeros(32, 32).bfloat16())


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_is_seen_in_its_row_alone(value):
    """Loss scaling and a run's report look for it."""
    x, weight = torch.ones(16, 32).bfloat16(), torch.ones(48, 32).bfloat16()
    x[3, 5] = value
    is_finite = ops.linear_float8(x, weight).isfinite()
    assert not is_finite[3].any()
    assert is_finite[torch.arange(16) != 3].all()
    is_finite = ops.linear_float8_weight_gradient(torch.ones(16, 48).bfloat16(), x).isfinite()
    assert not is_finite[:, 5].any()
    assert is_finite[:, torch.arange(32) != 5].all()


def test_gpus_before_ada_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    for capability, is_refused in (((8, 0), True), ((8, 9), False), ((9, 0), False), ((7, 5), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        if is_refused:
            with pytest.raises(BuildError, match=r"cuda:0 \(NVIDIA A100, compute capability .* cannot"):
                float8.check_float8(torch.device("cuda", 0))
        else:
            float8.check_float8(torch.device("cuda", 0))
    float8.check_float8(torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.parametrize(("lead", "inputs", "outputs"), [*SIZES, ((4, 512), 1024, 768)])
def test_cuda_multiplies_with_its_float8_kernel(lead, inputs, outputs):
    """Sums of the fast kernels have some 14 bits; a bfloat16 product is near, a kernel of float8 is what runs."""
    if torch.cuda.get_device_capability() < float8.CAPABILITY:
        pytest.skip("needs compute capability 8.9")
    on_cpu = drawn(lead, inputs, outputs)
    x, weight, bias, dy = (value.cuda() for value in on_cpu)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        found = (
            ops.linear_float8(x, weight, bias),
            ops.linear_float8_input_gradient(dy, weight),
            ops.linear_float8_weight_gradient(dy, x),
        )
    assert sum(event.count for event in profile.key_averages() if event.key == "aten::_scaled_mm") == 3
    x, weight, bias, dy = on_cpu
    same = (
        ops.linear_float8(x, weight, bias),
        ops.linear_float8_input_gradient(dy, weight),
        ops.linear_float8_weight_gradient(dy, x),
    )
    wide = F.linear(x, weight, bias), ops.linear_input_gradient(dy, weight), ops.linear_weight_gradient(dy, x)
    for on_gpu, expected, exact in zip(found, same, wide, strict=True):
        assert (on_gpu.cpu().double() - expected.double()).norm() < 5e-3 * expected.double().norm()
        assert (on_gpu.cpu().double() - exact.double()).norm() < 0.1 * exact.double().norm()
