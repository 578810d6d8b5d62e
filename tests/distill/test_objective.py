"""A draft's loss is the cross-entropy it says it is, and agreement counts likeliest tokens."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from superscaler.distill.objective import Distillation, agreement


class Bigram(nn.Module):
    """What comes next depends on the last token alone."""

    def __init__(self, vocab, seed):
        super().__init__()
        table = torch.randn(vocab, vocab, generator=torch.Generator().manual_seed(seed))
        self.table = nn.Parameter(table.double())

    def forward(self, tokens):
        return self.table[tokens]


def lesson(vocab, seed, samples=3, seq=5, likely=4):
    """Tokens, and distributions over some of the tokens, the likeliest first."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(vocab, (samples, seq), generator=generator)
    scores = torch.rand(samples, seq, vocab, generator=generator, dtype=torch.float64)
    shares, named = scores.topk(likely)
    return tokens, named, shares / shares.sum(-1, keepdim=True)


@given(st.integers(4, 12), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_the_loss_is_the_cross_entropy_against_the_shares(vocab, seed):
    draft = Bigram(vocab, seed)
    tokens, named, shares = lesson(vocab, seed)
    total = 0.0
    for sample in range(3):
        for place in range(5):
            whole = torch.zeros(vocab, dtype=torch.float64)
            whole[named[sample, place]] = shares[sample, place]
            chances = draft.table[tokens[sample, place]].exp()
            total -= (whole * (chances / chances.sum()).log()).sum()
    torch.testing.assert_close(Distillation(draft)(tokens, named, shares), total / 15)


def test_it_is_least_where_the_draft_has_the_shares_themselves():
    vocab, (tokens, named, shares) = 6, lesson(6, seed=2, samples=1, seq=1, likely=6)
    draft = Bigram(vocab, seed=0)
    entropy = -(shares * shares.log()).sum()
    assert Distillation(draft)(tokens, named, shares) > entropy + 0.01
    with torch.no_grad():
        draft.table[tokens[0, 0]] = torch.zeros(vocab, dtype=torch.float64).scatter(
            0, named[0, 0], shares[0, 0].log()
        )
    torch.testing.assert_close(Distillation(draft)(tokens, named, shares), entropy)


def test_agreement_counts_places_from_the_first_that_counts():
    draft = Bigram(8, seed=1)
    tokens, named, _ = lesson(8, seed=3, samples=5)
    right = draft(tokens).argmax(-1) == named[..., 0]
    for first in range(5):
        expected = right[:, first:].double().mean().item()
        assert abs(agreement(draft, tokens, named, first, batch=2) - expected) < 1e-12
