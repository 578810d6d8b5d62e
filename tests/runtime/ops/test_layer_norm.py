"""layer_norm_backward against autograd, for statistics that do not lie contiguously."""

import torch
import torch.nn.functional as F

from superscaler.runtime.ops import layer_norm_backward


def test_a_piece_of_the_sequence_has_the_gradients_autograd_gives_the_piece():
    torch.manual_seed(0)
    x, dy = torch.randn(2, 6, 8, dtype=torch.float64), torch.randn(2, 6, 8, dtype=torch.float64)
    weight, bias = torch.randn(8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    _, mean, rstd = torch.native_layer_norm(x, [8], weight, bias, 1e-5)
    pieces = [tensor.narrow(1, 2, 3) for tensor in (dy, x, mean, rstd)]
    assert not pieces[2].is_contiguous()
    ours = layer_norm_backward(pieces[0], pieces[1], [8], pieces[2], pieces[3], weight, bias, [True] * 3)
    leaves = [tensor.clone().requires_grad_() for tensor in (pieces[1], weight, bias)]
    F.layer_norm(leaves[0], [8], leaves[1], leaves[2], 1e-5).backward(pieces[0])
    for got, leaf in zip(ours, leaves, strict=True):
        torch.testing.assert_close(got, leaf.grad)
