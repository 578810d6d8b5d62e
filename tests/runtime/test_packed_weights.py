"""Packed weights multiply as the weights themselves, and are these for everything else."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from superscaler.runtime.packed_weights import PackedWeight, pack


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 300),
    width=st.integers(64, 200),
    out=st.integers(64, 200),
    has_bias=st.booleans(),
    is_batched=st.booleans(),
)
def test_a_packed_weight_multiplies_as_it_did(rows, width, out, has_bias, is_batched):
    generator = torch.Generator().manual_seed(rows)
    weight, bias = torch.randn(out, width, generator=generator), torch.randn(out, generator=generator)
    x = torch.randn(*([1] if is_batched else []), rows, width, generator=generator)
    packed = pack({"w": weight})["w"]
    assert isinstance(packed, PackedWeight)
    arguments = (bias,) if has_bias else ()
    found = F.linear(x, packed, *arguments)
    assert type(found) is torch.Tensor
    expected = F.linear(x.double(), weight.double(), *(one.double() for one in arguments))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


def test_everything_else_takes_it_for_the_tensor_it_is():
    weight = torch.randn(80, 64)
    packed = pack({"w": weight})["w"]
    rows = torch.tensor([3, 1])
    assert torch.equal(F.embedding(rows, packed), weight[rows])
    assert torch.equal(packed @ torch.eye(64), weight @ torch.eye(64))
    assert packed.data_ptr() == weight.data_ptr()
    assert type(packed + 0) is torch.Tensor


@pytest.mark.parametrize(
    "weight",
    [
        torch.randn(80, 64, dtype=torch.float64),
        torch.randn(80, 64, dtype=torch.bfloat16),
        torch.randn(64),
        torch.randn(8, 64),
        torch.randn(64, 80).t(),
        torch.zeros(80, 64, dtype=torch.int64),
    ],
)
def test_what_gains_nothing_stays_as_it_is(weight):
    assert pack({"w": weight})["w"] is weight
