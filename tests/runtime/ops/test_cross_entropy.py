"""The halves of cross entropy give F.cross_entropy and its gradient, also over pieces of the vocabulary."""

import pytest
import torch
import torch.nn.functional as F

from superscaler.runtime import ops


def eager(logits, target):
    logits = logits.detach().clone().requires_grad_()
    loss = F.cross_entropy(logits, target, reduction="sum")
    loss.backward()
    return loss.detach(), logits.grad


@pytest.mark.parametrize("shape", [(1, 3), (50, 7), (130, 1000), (3, 70_000)])
def test_equals_torch(shape):
    logits, target = torch.randn(shape, dtype=torch.float64) * 5, torch.randint(shape[1], shape[:1])
    loss, gradient = eager(logits, target)
    lse, picked = ops.cross_entropy(logits, target)
    torch.testing.assert_close((lse - picked).sum(), loss)
    ones = torch.ones_like(lse)
    torch.testing.assert_close(ops.cross_entropy_backward(ones, -ones, logits, target, lse), gradient)


def test_pieces_of_the_vocabulary_add_up():
    logits, target = torch.randn(20, 12, dtype=torch.float64), torch.randint(12, (20,))
    target[3] = -100
    whole_lse, whole_picked = ops.cross_entropy(logits, target)
    parts = [
        ops.cross_entropy(logits[:, a:b].contiguous(), target, vocab_start=a) for a, b in ((0, 5), (5, 12))
    ]
    torch.testing.assert_close(torch.stack([lse for lse, _ in parts]).logsumexp(0), whole_lse)
    torch.testing.assert_close(sum(picked for _, picked in parts), whole_picked)
    dlse, dpicked = torch.randn(20, dtype=torch.float64), torch.randn(20, dtype=torch.float64)
    whole = ops.cross_entropy_backward(dlse, dpicked, logits, target, whole_lse)
    for a, b in ((0, 5), (5, 12)):
        piece = ops.cross_entropy_backward(dlse, dpicked, logits[:, a:b], target, whole_lse, vocab_start=a)
        torch.testing.assert_close(piece, whole[:, a:b])


def test_an_ignored_row_picks_nothing():
    logits = torch.randn(2, 4)
    target = torch.tensor([-100, 1])
    lse, picked = ops.cross_entropy(logits, target)
    assert picked.tolist() == [0, logits[1, 1].item()]
    gradient = ops.cross_entropy_backward(torch.zeros(2), torch.ones(2), logits, target, lse)
    assert gradient.tolist() == [[0, 0, 0, 0], [0, 1, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_sum_in_float32(dtype):
    logits, target = torch.randn(6, 300).to(dtype), torch.randint(300, (6,))
    lse, _ = ops.cross_entropy(logits, target)
    torch.testing.assert_close(lse, logits.float().logsumexp(1))
    gradient = ops.cross_entropy_backward(torch.ones(6), -torch.ones(6), logits, target, lse)
    assert gradient.dtype == dtype
    _, expected = eager(logits.float(), target)
    torch.testing.assert_close(gradient.float(), expected, rtol=1e-2, atol=1e-2)


def test_a_piece_of_masked_logits_adds_nothing():
    logits = torch.tensor([[-torch.inf, -torch.inf], [0.0, -torch.inf]])
    target = torch.tensor([5, 0])
    lse, _ = ops.cross_entropy(logits, target)
    assert lse.tolist() == [-torch.inf, 0.0]
    gradient = ops.cross_entropy_backward(
        torch.ones(2), -torch.ones(2), logits, target, torch.tensor([1.0, 0.0])
    )
    assert gradient.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_small_probabilities_keep_their_relative_precision():
    logits = torch.tensor([[0.0, -40.0, -60.0]])
    lse, _ = ops.cross_entropy(logits, torch.tensor([7]))
    gradient = ops.cross_entropy_backward(torch.ones(1), torch.ones(1), logits, torch.tensor([7]), lse)
    torch.testing.assert_close(gradient, logits.exp(), rtol=1e-5, atol=0)
