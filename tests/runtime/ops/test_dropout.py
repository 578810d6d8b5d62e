"""Dropout drops the same elements in pieces as in the whole, with the right frequency, anew every step."""

import pytest
import torch

from superscaler.runtime import ops


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_pieces_equal_the_whole(dtype):
    x = torch.randn(6, 10, 9, dtype=dtype)
    whole = ops.dropout(x, 3, p=0.3, key="h.0")
    for a, b, c, d in ((0, 2, 0, 5), (2, 6, 5, 10), (1, 4, 3, 4)):
        piece = ops.dropout(x[a:b, c:d], 3, p=0.3, key="h.0", starts=(a, c, 0), whole=x.shape)
        assert torch.equal(piece, whole[a:b, c:d])
    piece = ops.dropout(x[..., 4:7], 3, p=0.3, key="h.0", starts=(0, 0, 4), whole=x.shape)
    assert torch.equal(piece, whole[..., 4:7])


def test_a_cut_inside_a_viewed_dim_drops_the_same():
    x = torch.randn(4, 3 * 6 * 2)
    whole = ops.dropout(x, 3, p=0.3, key=1)
    heads = x.view(4, 3, 6, 2)[:, :, 2:4]
    box = {"starts": (0, 0, 2, 0), "local": (4, 3, 2, 2), "whole": (4, 3, 6, 2)}
    piece = ops.dropout(heads.reshape(4, 12), 3, p=0.3, key=1, **box)
    assert torch.equal(piece, whole.view(4, 3, 6, 2)[:, :, 2:4].reshape(4, 12))


def test_a_row_longer_than_a_chunk_drops_the_same_in_pieces():
    x = torch.ones(3, 100_000)
    whole = ops.dropout(x, 1, p=0.5, key="k")
    piece = ops.dropout(x[1:, 50_001:], 1, p=0.5, key="k", starts=(1, 50_001), whole=x.shape)
    assert torch.equal(piece, whole[1:, 50_001:])


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_keeps_the_mean_and_the_frequency(p):
    out = ops.dropout(torch.ones(400_000), 0, p=p, key="k")
    assert abs((out == 0).double().mean().item() - p) < 0.004
    assert set(out.unique().tolist()) == {0.0, torch.tensor(1.0).div(1 - p).item()}


def test_masks_of_steps_and_keys_are_independent():
    ones = torch.ones(100_000)
    masks = [ops.dropout(ones, step, p=0.5, key=key) != 0 for step, key in ((0, "a"), (1, "a"), (0, "b"))]
    for i in range(3):
        for j in range(i):
            assert abs((masks[i] & masks[j]).double().mean().item() - 0.25) < 0.01


def test_backward_uses_the_same_mask_and_a_tensor_step_is_the_same_step():
    x = torch.randn(40, 50)
    ones = torch.ones_like(x)
    forward = ops.dropout(x, 5, p=0.4, key="k")
    backward = ops.dropout_backward(ones, torch.tensor(5), p=0.4, key="k")
    torch.testing.assert_close(forward, x * backward)


def test_the_extremes_keep_and_drop_everything():
    x = torch.randn(7)
    assert torch.equal(ops.dropout(x, 0, p=0.0, key="k"), x)
    assert torch.equal(ops.dropout(x, 0, p=1.0, key="k"), torch.zeros(7))


def test_a_dim_cut_inside_drops_what_the_whole_drops():
    x = torch.randn(5, 3 * 4 * 2, dtype=torch.float64)
    whole = ops.dropout(x, 3, p=0.5, key=1)
    inner = x.view(5, 3, 4, 2)[:, :, 1:3].reshape(5, -1)
    piece = ops.dropout(inner, 3, p=0.5, key=1, starts=(0, 0, 1, 0), local=(5, 3, 2, 2), whole=(5, 3, 4, 2))
    assert torch.equal(piece, whole.view(5, 3, 4, 2)[:, :, 1:3].reshape(5, -1))
