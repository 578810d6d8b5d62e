"""Embedding and its gradient equal torch's, whole and over pieces of the table."""

import torch
import torch.nn.functional as F

from superscaler.runtime import ops


def test_equals_torch():
    weight = torch.randn(11, 3, dtype=torch.float64, requires_grad=True)
    index = torch.randint(11, (4, 5))
    expected = F.embedding(index, weight)
    dy = torch.randn_like(expected)
    expected.backward(dy)
    torch.testing.assert_close(ops.embedding(weight.detach(), index), expected.detach())
    torch.testing.assert_close(ops.embedding_backward(dy, index, num_rows=11), weight.grad)


def test_pieces_of_the_table_add_up():
    weight, index = torch.randn(11, 3), torch.randint(11, (4, 5))
    dy = torch.randn(4, 5, 3)
    whole = ops.embedding_backward(dy, index, num_rows=11)
    total = torch.zeros(4, 5, 3)
    for a, b in ((0, 4), (4, 11)):
        total += ops.embedding(weight[a:b], index, vocab_start=a)
        piece = ops.embedding_backward(dy, index, num_rows=b - a, vocab_start=a)
        torch.testing.assert_close(piece, whole[a:b])
    torch.testing.assert_close(total, weight[index])
