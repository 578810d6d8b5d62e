"""What a matcher does not allow has no logit."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from superscaler.runtime.serving.grammar.matcher import masked
from superscaler.runtime.serving.sampling import Row, probabilities, sample
from superscaler.runtime.serving.sampling_params import SamplingParams
from tests.runtime.serving.finite_language import FiniteMatcher


@settings(deadline=None)
@given(st.data(), st.integers(1, 70), st.integers(1, 4))
def test_only_the_logits_of_allowed_tokens_stay(data, vocab, rows):
    allowed = [data.draw(st.sets(st.integers(0, vocab - 1), min_size=1)) for _ in range(rows)]
    matchers = [FiniteMatcher({(token,) for token in tokens}, vocab, ()) for tokens in allowed]
    scores = torch.randn(rows, vocab)
    found = masked(scores, matchers)
    for tokens, before, after in zip(allowed, scores.tolist(), found.tolist(), strict=True):
        assert after == [score if token in tokens else float("-inf") for token, score in enumerate(before)]


@settings(deadline=None)
@given(st.data(), st.integers(0, 1 << 40), st.sampled_from([0.0, 0.7, 2.0]))
def test_what_is_sampled_is_allowed_and_the_rest_is_renormalised(data, seed, temperature):
    vocab = 13
    allowed = data.draw(st.sets(st.integers(0, vocab - 1), min_size=1))
    matcher = FiniteMatcher({(token,) for token in allowed}, vocab, ())
    options = SamplingParams(
        temperature=temperature, top_k=data.draw(st.integers(0, vocab)), presence_penalty=1.5,
        repetition_penalty=1.3, logit_bias={data.draw(st.integers(0, vocab - 1)): -100.0},
    )  # fmt: skip
    rows = [Row(options, seed, (1, 2), (3,), matcher=matcher), Row(options, seed, (1, 2), (3,))]
    logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(seed % 1000)).expand(2, vocab)
    assert sample(logits, rows).tokens[0] in allowed
    held, free = probabilities(logits, rows)
    assert set(held.nonzero().flatten().tolist()) <= allowed
    if not options.top_k and temperature:
        kept = torch.zeros(vocab).index_fill(0, torch.tensor(sorted(allowed)), 1.0) * free
        if kept.sum() > 1e-6:
            torch.testing.assert_close(held, kept / kept.sum(), rtol=1e-4, atol=1e-6)
    assert sample(logits, rows).tokens[1] == sample(logits[1:], rows[1:]).tokens[0]
