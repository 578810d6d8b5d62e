"""Sampling follows each row's options, whatever the batch: against a slow reference and transformers' processors."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process

from superscaler.runtime.serving.sampling import (
    Row,
    draw,
    likeliest,
    probabilities,
    sample,
    uniforms,
)
from tests.runtime.serving.sampling_rows import Options, row

VOCAB = 12


def reference(logits, row):
    """Probabilities of one row, a token at a time."""
    options = row.options
    scores = list(logits)
    after = [*row.output, *row.path]
    for token in range(len(scores)):
        scores[token] += options.logit_bias.get(token, 0.0)
        if len(after) < options.min_tokens and token in row.end_tokens:
            scores[token] = -math.inf
        if token in row.prompt or token in after:
            factor = options.repetition_penalty
            scores[token] = scores[token] * factor if scores[token] < 0 else scores[token] / factor
        scores[token] -= options.frequency_penalty * after.count(token)
        scores[token] -= options.presence_penalty * (token in after)
    order = sorted(range(len(scores)), key=lambda token: -scores[token])
    if options.temperature == 0:
        return [float(token == order[0]) for token in range(len(scores))]
    top = max(scores)
    weights = [math.exp((score - top) / options.temperature) for score in scores]
    kept = order[: options.top_k] if options.top_k > 0 else order
    total, mass, nucleus = sum(weights[token] for token in kept), 0.0, []
    for token in kept:
        if mass < options.top_p * total:
            nucleus.append(token)
        mass += weights[token]
    nucleus = [token for token in nucleus if weights[token] >= options.min_p]
    total = sum(weights[token] for token in nucleus)
    return [weights[token] / total if token in nucleus else 0.0 for token in range(len(scores))]


TOKENS = st.integers(0, VOCAB - 1)
OPTIONS = st.builds(
    Options,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    top_k=st.sampled_from([-1, 0, 1, 3, 100]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.05, 0.6]),
    presence_penalty=st.sampled_from([0.0, 0.7, -0.7]),
    frequency_penalty=st.sampled_from([0.0, 0.4]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    logit_bias=st.dictionaries(TOKENS, st.floats(-5, 5), max_size=2),
    min_tokens=st.sampled_from([0, 3]),
    logprobs=st.sampled_from([None, 0, 2]),
)
ROWS = st.builds(
    Row,
    OPTIONS,
    seed=st.integers(-(2**70), 2**70),
    prompt=st.lists(TOKENS, max_size=4),
    output=st.lists(TOKENS, max_size=4),
    path=st.lists(TOKENS, max_size=2).map(tuple),
    sequence=st.integers(0, 3),
    end_tokens=st.just((1, 2)),
)


def some_logits(count, seed=0, vocab=VOCAB, dtype=torch.float64):
    return (
        torch.randn(count, vocab, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
            dtype
        )
        * 2
    )


@settings(max_examples=150, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=6), st.integers(0, 1000))
def test_probabilities_are_the_references(rows, seed):
    logits = some_logits(len(rows), seed)
    before = logits.clone()
    expected = torch.tensor([reference(one.tolist(), row) for one, row in zip(logits, rows, strict=True)])
    torch.testing.assert_close(probabilities(logits, rows), expected.double(), atol=1e-6, rtol=0)
    assert torch.equal(logits, before)


@settings(max_examples=60, deadline=None)
@given(st.lists(ROWS, min_size=2, max_size=6), st.integers(0, 1000), st.randoms(use_true_random=False))
def test_a_row_gets_the_same_alone_and_in_any_batch(rows, seed, random):
    logits = some_logits(len(rows), seed, dtype=torch.float32)
    together, weights = sample(logits, rows), probabilities(logits, rows)
    order = random.sample(range(len(rows)), len(rows))
    shuffled = sample(logits[order], [rows[number] for number in order])
    for place, number in enumerate(order):
        alone = sample(logits[number : number + 1], [rows[number]])
        assert alone.tokens[0] == together.tokens[number] == shuffled.tokens[place]
        assert torch.equal(probabilities(logits[number : number + 1], [rows[number]])[0], weights[number])


def test_a_row_gets_the_same_in_a_large_vocabulary():
    rows = [
        row(seed=number, top_p=0.9, temperature=temperature, top_k=top_k)
        for number, (temperature, top_k) in enumerate([(1, 0), (0.2, 0), (3, 0), (1, 40), (1, 3000)] * 3)
    ]
    logits = some_logits(len(rows), vocab=50_000, dtype=torch.float32)
    weights = probabilities(logits, rows)
    for number, one in enumerate(rows):
        assert torch.equal(probabilities(logits[number : number + 1], [one])[0], weights[number])
        nucleus = weights[number][weights[number] > 0]
        assert len(nucleus) == expected_nucleus(logits[number], one.options)


def expected_nucleus(logits, options):
    weights = (logits.double() / options.temperature).softmax(-1).sort(descending=True).values
    weights = weights[: options.top_k] if options.top_k else weights
    return int((weights.cumsum(0) - weights < options.top_p * weights.sum()).sum())


@pytest.mark.parametrize(
    ("options", "processors"),
    [
        ({"temperature": 0.7}, [logits_process.TemperatureLogitsWarper(0.7)]),
        ({"top_k": 5}, [logits_process.TopKLogitsWarper(5)]),
        ({"top_p": 0.8}, [logits_process.TopPLogitsWarper(0.8)]),
        ({"min_p": 0.1}, [logits_process.MinPLogitsWarper(0.1)]),
        ({"repetition_penalty": 1.4}, [logits_process.RepetitionPenaltyLogitsProcessor(1.4)]),
        (
            {"repetition_penalty": 0.7, "temperature": 1.3, "top_k": 60, "top_p": 0.9, "min_p": 0.02},
            [
                logits_process.RepetitionPenaltyLogitsProcessor(0.7),
                logits_process.TemperatureLogitsWarper(1.3),
                logits_process.TopKLogitsWarper(60),
                logits_process.TopPLogitsWarper(0.9),
                logits_process.MinPLogitsWarper(0.02),
            ],
        ),
    ],
)
def test_options_mean_what_they_do_in_transformers(options, processors):
    vocab, count = 300, 8
    logits = some_logits(count, 1, vocab)
    history = torch.randint(vocab, (count, 20), generator=torch.Generator().manual_seed(2))
    scores = logits.clone()
    for processor in processors:
        scores = processor(history, scores)
    rows = [row(prompt=tokens[:12], output=tokens[12:], **options) for tokens in history.tolist()]
    torch.testing.assert_close(probabilities(logits, rows), scores.softmax(-1), atol=1e-9, rtol=1e-7)


def test_samples_occur_as_often_as_their_probabilities_say():
    count = 40_000
    logits = some_logits(1, 3).expand(count, -1)
    options = Options(temperature=1.5, top_k=8)
    rows = [Row(options, seed, (1, 2, 3)) for seed in range(count)]
    expected = probabilities(logits[:1], rows[:1])[0] * count
    found = torch.bincount(torch.tensor(sample(logits, rows).tokens), minlength=VOCAB)
    assert (found[expected == 0] == 0).all()
    kept = expected > 0
    chi_squared = ((found - expected)[kept] ** 2 / expected[kept]).sum().item()
    assert chi_squared < 7 + 5 * 14**0.5


@pytest.mark.parametrize("change", [{"seed": 1}, {"sequence": 1}, {"prompt": (1, 2, 3)}, {"path": (4,)}])
def test_seed_sequence_and_position_each_give_other_numbers(change):
    rows = [Row(Options(), seed, (1, 2)) for seed in range(0, 4000, 2)]
    changed = [
        replace(row, **{name: row.seed + 1 if name == "seed" else change[name] for name in change})
        for row in rows
    ]
    pair = torch.stack([uniforms(rows, "token"), uniforms(changed, "token")])
    assert abs(torch.corrcoef(pair)[0, 1]) < 0.1


def test_purposes_and_numbers_are_independent():
    rows = [Row(Options(), seed, (1, 2)) for seed in range(2000)]
    numbers = [uniforms(rows, "token"), uniforms(rows, "draft"), uniforms(rows, "draft", torch.tensor(1))]
    assert (torch.corrcoef(torch.stack(numbers)) - torch.eye(3)).abs().max() < 0.1


def test_one_request_draws_evenly_along_its_text():
    rows = [Row(Options(), 7, range(length)) for length in range(4000)]
    counts = torch.histc(uniforms(rows, "token"), 20, 0, 1)
    assert ((counts - 200) ** 2 / 200).sum() < 19 + 5 * 38**0.5


def test_position_counts_all_tokens_before():
    whole = row(prompt=(1, 2, 3, 4, 5))
    parts = replace(row(prompt=(1, 2), output=(3, 4)), path=(5,))
    assert torch.equal(uniforms([whole], "token"), uniforms([parts], "token"))


def test_draw_never_takes_what_weighs_nothing():
    weights = torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0]])
    numbers = torch.tensor([0.0, 0.2999, 0.3001, 1 - 2**-53], dtype=torch.float64)
    assert draw(weights.expand(4, -1), numbers).tolist() == [1, 1, 3, 3]


def test_greedy_takes_the_first_of_the_likeliest():
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0]])
    rows = [row(temperature=0)]
    assert sample(logits, rows).tokens == [1]
    assert probabilities(logits, rows).tolist() == [[0, 1, 0, 0]]
    assert [sorted(tokens) for tokens in likeliest(logits, rows, 9)] == [[0, 1, 2, 3]]


def test_tokens_of_equal_probability_are_kept_or_dropped_together():
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    for options in ({"top_k": 2}, {"top_p": 0.5}):
        kept = probabilities(logits, [row(**options)])[0] > 0
        assert kept.tolist() == [True, True, True, True, False]


def test_the_end_is_forbidden_until_there_are_enough_tokens():
    logits = torch.tensor([[0.0, 9.0, 0.0]])
    few = row(output=(0, 0), end_tokens=(1, 77), min_tokens=3, temperature=0)
    assert sample(logits, [few]).tokens == [0]
    assert sample(logits, [few.after(0)]).tokens == [1]


def test_tokens_without_a_logit_change_nothing():
    logits = some_logits(2)
    plain = [row(prompt=(3,), output=(4,), repetition_penalty=1.5) for _ in range(2)]
    padded = [
        row(prompt=(3, 99), output=(4, VOCAB), repetition_penalty=1.5, logit_bias={VOCAB: 5.0})
        for _ in range(2)
    ]
    assert torch.equal(probabilities(logits, plain), probabilities(logits, padded))


def test_logprobs_are_the_models_own():
    logits = some_logits(3)
    rows = [row(logprobs=2, temperature=0.1), row(), row(logprobs=0, top_k=1)]
    sampled = sample(logits, rows)
    logs = logits.log_softmax(-1)
    first, second, third = sampled.logprobs
    assert second is None
    assert third.likeliest == ()
    values, tokens = logs[0].topk(2)
    assert first.likeliest == tuple(zip(tokens.tolist(), values.tolist(), strict=True))
    for number, logprobs in ((0, first), (2, third)):
        assert logprobs.chosen == logs[number, sampled.tokens[number]].item()


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_broken_logits_are_an_error_that_names_the_rows(temperature, broken):
    logits = some_logits(3)
    logits[1, 4] = broken
    with pytest.raises(FloatingPointError, match=r"rows \[1\] are not finite"):
        sample(logits, [row(temperature=temperature)] * 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_logits_of_any_precision_are_sampled(dtype):
    logits = some_logits(2, dtype=dtype)
    weights = probabilities(logits, [row(), row(temperature=0.5, top_p=0.9)])
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(-1), torch.ones(2))


def test_what_may_not_be_taken_is_not_among_the_likeliest():
    options = Options(temperature=0.0, min_tokens=2)
    held = Row(options, 0, (1,), end_tokens=(1, 3))
    assert likeliest(torch.tensor([[0.0, 5.0, 1.0, 4.0]]), [held], 4) == [[2, 0]]


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1), st.lists(st.integers(0, 9)), st.data())
def test_what_is_certain_from_a_number_on_is_the_end_of_prompt_and_output(prompt, output, data):
    start = data.draw(st.integers(0, len(prompt) + len(output)))
    found = Row(Options(), 0, tuple(prompt), output, path=(3, 4)).certain(start)
    assert list(found) == [*prompt, *output][start:]
