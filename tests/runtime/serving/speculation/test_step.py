"""One step of speculation gives what sampling token by token gives, for all kinds of rows and proposals at once."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from superscaler.runtime.serving.sampling import Row, likeliest, probabilities, sample
from superscaler.runtime.serving.speculation.drafting import grow
from superscaler.runtime.serving.speculation.ngram import NgramSpeculator
from superscaler.runtime.serving.speculation.step import Proposal, Speculator, Wish, merged, verify
from superscaler.runtime.serving.speculation.token_tree import ROOT, depths, expansion, from_paths, ranks
from tests.runtime.serving.sampling_rows import Options, row

VOCAB = 7
GENERATOR = torch.Generator().manual_seed(0)
MODEL = torch.randn(VOCAB, VOCAB, generator=GENERATOR) * 2
"""Logits of the next token by the last one."""
SMALL = MODEL + torch.randn(VOCAB, VOCAB, generator=GENERATOR)
OPTIONS = [
    Options(temperature=0),
    Options(temperature=0, repetition_penalty=1.5, logprobs=2),
    Options(temperature=0.9, top_p=0.95, presence_penalty=0.5, logprobs=1),
    Options(),
]


def last(row):
    return [*row.prompt, *row.output, *row.path][-1]


def logits_of(rows, proposals):
    tokens = [
        token
        for row, proposal in zip(rows, proposals, strict=True)
        for token in (last(row), *proposal.tree.tokens)
    ]
    return MODEL[tokens]


def plain(row, count):
    """Tokens and logprobs without speculation."""
    tokens, logprobs = [], []
    for _ in range(count):
        sampled = sample(MODEL[[last(row)]], [row])
        tokens += sampled.tokens
        logprobs += sampled.logprobs
        row = row.after(tokens[-1])
    return tuple(tokens), tuple(logprobs)


PATHS = st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=3), max_size=5)


@settings(deadline=None)
@given(st.lists(st.tuples(PATHS, st.sampled_from(OPTIONS), st.integers(0, 99)), min_size=1, max_size=5))
def test_proposals_that_are_not_drawn_change_no_token_whatever_the_seed(cases):
    proposals = [Proposal(from_paths(paths)) for paths, _, _ in cases]
    rows = [row(prompt=(1, 2), seed=seed) for _, _, seed in cases]
    rows = [replace(one, options=options) for one, (_, options, _) in zip(rows, cases, strict=True)]
    for one, proposal, verified in zip(
        rows, proposals, verify(logits_of(rows, proposals), proposals, rows), strict=True
    ):
        tokens, logprobs = plain(one, len(verified.tokens))
        assert (verified.tokens, verified.logprobs) == (tokens, logprobs)
        assert proposal.tree.path(verified.nodes[-1] if verified.nodes else ROOT) == tokens[:-1]
        node = verified.nodes[-1] if verified.nodes else ROOT
        assert tokens[-1] not in proposal.tree.children[node + 1]  # it went as far as it could


def small_logits(wishes):
    return lambda places: SMALL[
        [place.path[-1] if place.path else last(wishes[place.wish].row) for place in places]
    ]


def test_greedy_rows_give_the_models_own_text_with_a_small_models_tree():
    rows = [row(prompt=(token,), temperature=0) for token in range(VOCAB)]
    wishes = [Wish(number, one, expansion(2, 2, 1)) for number, one in enumerate(rows)]
    proposals = grow(wishes, small_logits(wishes))
    accepted = 0
    for one, verified in zip(rows, verify(logits_of(rows, proposals), proposals, rows), strict=True):
        assert verified.tokens == plain(one, len(verified.tokens))[0]
        accepted += len(verified.nodes)
    assert accepted > VOCAB


def test_a_step_is_the_same_alone_and_in_any_batch():
    rows = [Row(OPTIONS[number % 4], number, (number % VOCAB,)) for number in range(24)]
    wishes = [Wish(number, one, expansion(*[2] * (number % 4))) for number, one in enumerate(rows)]
    proposals = grow(wishes, small_logits(wishes))
    together = verify(logits_of(rows, proposals), proposals, rows)
    for number, one in enumerate(rows):
        alone = [replace(wishes[number], sequence=0)]
        proposal = grow(alone, small_logits(alone))
        assert proposal[0].tree == proposals[number].tree
        assert verify(logits_of([one], proposal), proposal, [one]) == [together[number]]


def test_logits_that_do_not_fit_the_trees_are_refused():
    with pytest.raises(AssertionError, match="3 rows of logits for 2 roots and nodes"):
        verify(MODEL[:3], [Proposal(from_paths([(1,)]))], [row()])


def test_grown_trees_have_their_shape_and_the_likeliest_tokens_where_greedy():
    shape = expansion(3, 1, 2)
    wishes = [Wish(0, row(prompt=(4,), temperature=0), shape), Wish(1, row(prompt=(4,)), shape)]
    greedy, drawn = grow(wishes, small_logits(wishes), speculator=5)
    assert greedy.tree.parents == drawn.tree.parents == shape
    assert greedy.drafts == {}
    for node in range(-1, len(shape)):
        path = (4, *greedy.tree.path(node))
        tokens = greedy.tree.draws(node).get(5, ())
        assert (
            list(tokens) == likeliest(SMALL[[path[-1]]], [wishes[0].row], len(tokens) or 1)[0][: len(tokens)]
        )


def test_drafts_are_what_the_tokens_were_drawn_from():
    wish = Wish(0, row(prompt=(4,), seed=3, temperature=0.7, top_k=3), expansion(2, 2))
    (proposal,) = grow([wish], small_logits([wish]))
    assert set(proposal.drafts) == {(ROOT, 0), (0, 0), (1, 0)}
    for (node, _), draft in proposal.drafts.items():
        path = proposal.tree.path(node)
        below = replace(wish.row, path=path)
        assert torch.equal(draft.probabilities, probabilities(SMALL[[last(below)]], [below])[0])
        assert not draft.replacement
        assert all(draft.probabilities[token] > 0 for token in proposal.tree.draws(node)[0])


def test_children_that_cannot_be_drawn_are_left_out_with_what_is_below():
    wish = Wish(0, row(prompt=(4,), top_k=2), expansion(3, 2))
    (proposal,) = grow([wish], small_logits([wish]))
    assert proposal.tree.parents == expansion(2, 2)
    assert max(ranks(proposal.tree.parents)) == 1


def test_draws_without_replacement_occur_as_often_as_they_should():
    count = 20_000
    wishes = [Wish(seed, row(prompt=(4,), seed=seed), expansion(2)) for seed in range(count)]
    proposals = grow(wishes, small_logits(wishes))
    weights = SMALL[4].double().softmax(-1)
    expected = torch.outer(weights, weights) / (1 - weights).unsqueeze(-1) * (1 - torch.eye(VOCAB))
    found = torch.zeros(VOCAB, VOCAB)
    for proposal in proposals:
        found[proposal.tree.tokens] += 1
    expected *= count
    assert (found[expected == 0] == 0).all()
    common = expected > 5  # rarer pairs are not nearly normal
    freedom = int(common.sum()) - 1
    chi_squared = ((found - expected)[common] ** 2 / expected[common]).sum()
    assert chi_squared < freedom + 5 * (2 * freedom) ** 0.5


def test_speculators_of_both_kinds_merge():
    text = [3, 5, 2, 3, 5]
    wish = Wish("a", row(prompt=text, seed=1), expansion(2, 1))
    ngram: Speculator = NgramSpeculator(speculator=1)
    both = merged([grow([wish], small_logits([wish]))[0], ngram.propose([wish])[0]])
    assert both.tree.draws(ROOT)[1] == (2,)
    assert len(both.tree.draws(ROOT)[0]) == 2
    assert {speculator for _, speculator in both.drafts} == {0}
    for (node, _), draft in both.drafts.items():
        below = replace(wish.row, path=both.tree.path(node))
        assert torch.equal(draft.probabilities, probabilities(SMALL[[last(below)]], [below])[0])
    assert max(depths(both.tree.parents)) == 2
    (verified,) = verify(logits_of([wish.row], [both]), [both], [wish.row])
    assert 1 <= len(verified.tokens) <= 3
