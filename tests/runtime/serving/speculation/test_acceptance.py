"""Speculation does not change the distribution of the output: enumerated exactly, and sampled end to end.

The same enumeration finds three rules that look right and are not.
"""

from collections import Counter
from functools import partial

import pytest
import torch

from superscaler.runtime.serving.sampling import Row, draw, probabilities, uniforms
from superscaler.runtime.serving.speculation.acceptance import Draws, RowChance, next_tokens
from superscaler.runtime.serving.speculation.drafting import grow
from superscaler.runtime.serving.speculation.step import Draft, Proposal, Wish, merged, verify
from superscaler.runtime.serving.speculation.token_tree import ROOT, Attempt, TokenTree, expansion, from_paths
from tests.runtime.serving.sampling_rows import Options, row
from tests.runtime.serving.speculation.enumeration import distribution, random_distribution, total_variation

EXACT = 1e-12
WRONG = 1e-3
VOCAB = 5


def draw_tokens(chance, draft, count, replacement):
    """As a speculator does: each draw by the distribution that is left."""
    left, tokens = draft.clone(), []
    for _ in range(count):
        if left.sum() == 0:
            break
        tokens.append(chance.pick(left.unsqueeze(0)).item())
        if not replacement:
            left[tokens[-1]] = 0
    return tokens


def draws(tokens, draft, replacement):
    return Draws(torch.tensor([tokens]), draft.unsqueeze(0), torch.tensor([replacement]))


def one_level(target, drafts, count, replacement):
    """The distribution of the next token when each of `drafts` draws `count` times."""

    def program(chance):
        drawn = [(draw_tokens(chance, draft, count, replacement), draft) for draft in drafts]
        attempts = [draws(tokens, draft, replacement) for tokens, draft in drawn]
        return next_tokens(target.unsqueeze(0), attempts, chance).item()

    return distribution(program)


def as_counter(target):
    return Counter(dict(enumerate(target.tolist())))


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(("model_zeros", "draft_zeros"), [(0, 0), (2, 0), (0, 2), (2, 3)])
def test_output_has_the_models_distribution(replacement, count, model_zeros, draft_zeros):
    generator = torch.Generator().manual_seed(count)
    for _ in range(4):
        target = random_distribution(generator, VOCAB, model_zeros)
        draft = random_distribution(generator, VOCAB, draft_zeros, like=target)
        found = one_level(target, [draft], count, replacement)
        assert total_variation(found, as_counter(target)) < EXACT


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("count", [1, 2])
def test_several_speculators_keep_the_models_distribution(replacement, count):
    generator = torch.Generator().manual_seed(7)
    target = random_distribution(generator, 4, zeros=1)
    drafts = [random_distribution(generator, 4, zeros, like=target) for zeros in (0, 1)]
    found = one_level(target, drafts, count, replacement)
    assert total_variation(found, as_counter(target)) < EXACT


def test_mixing_draws_with_and_without_replacement_keeps_it_too():
    generator = torch.Generator().manual_seed(8)
    target = random_distribution(generator, 4)
    with_it, without = (random_distribution(generator, 4, like=target) for _ in range(2))

    def program(chance):
        attempts = [
            draws(draw_tokens(chance, with_it, 2, True), with_it, True),
            draws(draw_tokens(chance, without, 2, False), without, False),
        ]
        return next_tokens(target.unsqueeze(0), attempts, chance).item()

    assert total_variation(distribution(program), as_counter(target)) < EXACT


def test_more_draws_are_accepted_more_often():
    generator = torch.Generator().manual_seed(9)
    target = random_distribution(generator, VOCAB)
    draft = random_distribution(generator, VOCAB, like=target)

    def accepted(count, replacement):
        def program(chance):
            tokens = draw_tokens(chance, draft, count, replacement)
            attempts = [draws(tokens, draft, replacement)]
            return next_tokens(target.unsqueeze(0), attempts, chance).item() in tokens

        return distribution(program)[True]

    once, twice, apart = accepted(1, True), accepted(2, True), accepted(2, False)
    assert once == pytest.approx(torch.minimum(target, draft).sum().item())
    assert once < twice < apart


# wrong rules, each of which gives another distribution


def sequential_rule(target, attempts, chance):
    """Try (token, draft) in order; the residual by each attempt's draft."""
    model = target
    for token, draft in attempts:
        if chance.happens(min(torch.tensor(1.0), model[token] / draft[token])).item():
            return token
        left = (model - draft).clamp(min=0)
        model = left / left.sum() if left.sum() > 0 else model
    return chance.pick(model.unsqueeze(0)).item()


def equal_children_counted_once(target, draft, count, chance):
    tokens = dict.fromkeys(draw_tokens(chance, draft, count, True))
    return sequential_rule(target, [(token, draft) for token in tokens], chance)


def likeliest_children_judged_by_probability(target, draft, count, chance):
    tokens = draft.topk(count).indices.tolist()
    return sequential_rule(target, [(token, draft) for token in tokens], chance)


def draft_not_renormalised(target, draft, count, chance):
    tokens = draw_tokens(chance, draft, count, False)
    return sequential_rule(target, [(token, draft) for token in tokens], chance)


WRONG_RULES = [equal_children_counted_once, likeliest_children_judged_by_probability, draft_not_renormalised]


@pytest.mark.parametrize("rule", WRONG_RULES)
def test_the_enumeration_finds_wrong_rules(rule):
    generator = torch.Generator().manual_seed(10)
    target = random_distribution(generator, VOCAB)
    draft = random_distribution(generator, VOCAB, like=target)
    found = distribution(partial(rule, target, draft, 2))
    assert total_variation(found, as_counter(target)) > WRONG
    right = one_level(target, [draft], 2, replacement=rule is equal_children_counted_once)
    assert total_variation(right, as_counter(target)) < EXACT


def test_the_wrong_rules_differ_only_where_they_are_wrong():
    generator = torch.Generator().manual_seed(11)
    target = random_distribution(generator, VOCAB)
    draft = random_distribution(generator, VOCAB, like=target)
    for rule in (equal_children_counted_once, draft_not_renormalised):
        assert total_variation(distribution(partial(rule, target, draft, 1)), as_counter(target)) < EXACT


# whole trees: a model whose next token depends on the last two


class Bigram:
    """Logits of the next token after the last one; `None` before the first."""

    def __init__(self, seed, vocab, zeros=0, like=None):
        generator = torch.Generator().manual_seed(seed)
        weights = [
            random_distribution(generator, vocab, zeros, None if like is None else like.after((token,)))
            for token in range(vocab)
        ]
        self.logits = torch.stack(weights).log()

    def after(self, path):
        return self.logits[path[-1]].softmax(-1)


def drawn_tree(chance, model, root, count, replacement, speculator):
    """Depth 2, `count` draws after the root and after each child; a token drawn twice is one node of two attempts."""
    first = draw_tokens(chance, model.after((root,)), count, replacement)
    seconds = {
        token: draw_tokens(chance, model.after((token,)), count, replacement)
        for token in dict.fromkeys(first)
    }
    nodes = [(ROOT, token, draw) for draw, token in enumerate(first)]
    parents = {token: number for number, token in enumerate(seconds)}
    nodes += [
        (parents[token], child, draw) for token, drawn in seconds.items() for draw, child in enumerate(drawn)
    ]
    places: dict = {}
    for parent, token, number in nodes:
        places.setdefault((parent, token), []).append(Attempt(speculator, number))
    tree = TokenTree(
        tuple(token for _, token in places),
        tuple(parent for parent, _ in places),
        tuple(map(tuple, places.values())),
    )
    after = {ROOT: (root,), **{number: (token,) for token, number in parents.items()}}
    drafts = {(node, speculator): Draft(model.after(path), replacement) for node, path in after.items()}
    return Proposal(tree, drafts)


def logits_of(model, root, tree):
    return torch.stack([model.logits[root], *(model.logits[token] for token in tree.tokens)])


def three_tokens(model, root, propose):
    """The distribution of three tokens, those a step does not give being drawn from the model."""

    def program(chance):
        proposal = propose(chance)
        (verified,) = verify(
            logits_of(model, root, proposal.tree), [proposal], [row(prompt=(root,))], lambda rows: chance
        )
        return verified.tokens

    found = Counter()
    for tokens, probability in distribution(program).items():
        for rest in continuations(model, (root, *tokens), 3 - len(tokens)):
            found[(*tokens, *rest[0])] += probability * rest[1]
    return found


def continuations(model, path, count):
    if count == 0:
        return [((), 1.0)]
    return [
        ((token, *rest), weight * probability)
        for token, weight in enumerate(model.after(path).tolist())
        for rest, probability in continuations(model, (*path, token), count - 1)
    ]


SCHEMES = ["independent", "without replacement", "two speculators", "likeliest", "text", "drawn and text"]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("zeros", [0, 1])
def test_trees_keep_the_models_distribution_of_sequences(scheme, zeros):
    vocab, root = 3, 1
    model = Bigram(3, vocab, zeros)
    small, other = Bigram(4, vocab, zeros, like=model), Bigram(5, vocab)
    text = Proposal(from_paths([(2, 0), (1, 1), (2, 1)], speculator=9))

    def propose(chance):
        if scheme == "independent":
            return drawn_tree(chance, small, root, 2, True, 0)
        if scheme == "without replacement":
            return drawn_tree(chance, small, root, 2, False, 0)
        if scheme == "two speculators":
            return merged(
                [drawn_tree(chance, small, root, 1, True, 0), drawn_tree(chance, other, root, 1, True, 1)]
            )
        if scheme == "likeliest":
            best = small.after((root,)).topk(2).indices.tolist()
            return Proposal(from_paths((token, int(small.after((token,)).argmax())) for token in best))
        if scheme == "text":
            return text
        return merged([drawn_tree(chance, small, root, 1, True, 0), text])

    found = three_tokens(model, root, propose)
    expected = Counter(dict(continuations(model, (root,), 3)))
    assert total_variation(found, expected) < EXACT


# where numbers run out


def certain(token):
    return torch.eye(VOCAB, dtype=torch.float64)[token]


def test_equal_distributions_accept_everything():
    target = random_distribution(torch.Generator().manual_seed(1), VOCAB, zeros=1)
    found = distribution(partial(only_accepted, target))
    assert found == {True: pytest.approx(1)}


def only_accepted(target, chance):
    tokens = draw_tokens(chance, target, 1, True)
    return next_tokens(target.unsqueeze(0), [draws(tokens, target, True)], chance).item() == tokens[0]


class Refusing:
    """A chance that refuses whatever is not certain, as rounding might."""

    def happens(self, probability):
        return torch.tensor([False])

    def pick(self, weights):
        assert weights.isfinite().all()
        assert (weights.sum(-1) > 0).all()
        return weights.argmax(-1)


@pytest.mark.parametrize("replacement", [True, False])
def test_a_residual_of_zero_leaves_the_distribution_as_it_was(replacement):
    target = random_distribution(torch.Generator().manual_seed(2), VOCAB)
    attempts = [draws([0, 1, 2], target, replacement)]
    assert next_tokens(target.unsqueeze(0), attempts, Refusing()).item() == target.argmax()


def test_a_draft_that_is_used_up_is_left_alone():
    target = random_distribution(torch.Generator().manual_seed(2), VOCAB)
    attempts = [draws([3, 3], certain(3), False)]
    assert next_tokens(target.unsqueeze(0), attempts, Refusing()).item() in range(VOCAB)


def test_what_the_model_rules_out_is_never_accepted_even_when_the_draft_rounded_to_zero():
    found = distribution(
        lambda chance: next_tokens(certain(1).unsqueeze(0), [draws([0], certain(2), True)], chance).item()
    )
    assert dict(found) == {1: 1.0}


def test_what_the_draft_rounded_to_zero_is_accepted_if_the_model_has_it():
    found = distribution(
        lambda chance: next_tokens(certain(1).unsqueeze(0), [draws([1], certain(2), True)], chance).item()
    )
    assert dict(found) == {1: 1.0}


def test_tiny_residuals_are_renormalised():
    draft = torch.tensor([[0.5, 0.5 - 1e-16, 0.0]], dtype=torch.float64)
    target = torch.tensor([[0.5, 0.5 - 1e-15, 1e-300]], dtype=torch.float64)
    attempt = Draws(torch.tensor([[1]]), draft, torch.tensor([True]))
    assert next_tokens(target, [attempt], Refusing()).item() == 2


def test_rows_of_a_batch_decide_alone():
    generator = torch.Generator().manual_seed(12)
    targets = torch.stack([random_distribution(generator, VOCAB) for _ in range(6)])
    drafts = torch.stack([random_distribution(generator, VOCAB) for _ in range(6)])
    tokens = torch.tensor([[0, 1, 2], [1, 1, -1], [2, -1, -1], [-1, -1, -1], [4, 3, 4], [0, 0, 0]])
    replacement = torch.tensor([False, True, True, True, True, False])
    rows = [row(seed=number, prompt=(1, 2)) for number in range(6)]
    together = next_tokens(targets, [Draws(tokens, drafts, replacement)], RowChance(rows))
    for number in range(6):
        one = slice(number, number + 1)
        attempt = Draws(tokens[one], drafts[one], replacement[one])
        assert next_tokens(targets[one], [attempt], RowChance(rows[one])) == together[number]


# end to end, through the sampling that requests go through


OPTIONS = Options(temperature=0.8, top_p=0.9)


@pytest.mark.parametrize("replacement", [True, False])
def test_a_hundred_thousand_sampled_tokens_are_distributed_as_the_models(replacement):
    vocab, count, batch = 20, 100_000, 20_000
    generator = torch.Generator().manual_seed(6)
    model = torch.randn(1, vocab, generator=generator) * 1.5
    small = model + torch.randn(1, vocab, generator=generator)
    target, draft = (
        probabilities(logits, [Row(OPTIONS, 0, ())]).expand(batch, -1) for logits in (model, small)
    )
    found = Counter()
    for start in range(0, count, batch):
        rows = [Row(OPTIONS, seed, ()) for seed in range(start, start + batch)]
        left, tokens = draft.clone(), []
        for number in range(3):
            tokens.append(draw(left, uniforms(rows, "draft", torch.tensor(number))).unsqueeze(-1))
            if not replacement:
                left.scatter_(-1, tokens[-1], 0.0)
        attempts = Draws(torch.cat(tokens, -1), draft, torch.full((batch,), replacement))
        found.update(next_tokens(target, [attempts], RowChance(rows)).tolist())
    assert_chi_squared(found, dict(enumerate(target[0].tolist())), count)


def test_sampled_steps_give_sequences_distributed_as_the_models():
    vocab, root, count = 6, 2, 12_000
    generator = torch.Generator().manual_seed(5)
    model = torch.randn(vocab, vocab, generator=generator) * 1.5
    small = model + torch.randn(vocab, vocab, generator=generator)
    rows = [Row(OPTIONS, seed, (root,)) for seed in range(count)]
    wishes = [Wish(row.seed, row, expansion(2, 1)) for row in rows]
    proposals = grow(wishes, lambda places: small[[(root, *place.path)[-1] for place in places]])
    logits = model[[token for proposal in proposals for token in (root, *proposal.tree.tokens)]]
    steps = [verified.tokens for verified in verify(logits, proposals, rows)]
    expected = expected_of_two(model, root, OPTIONS)
    assert_chi_squared(Counter(tokens[:1] for tokens in steps), marginal(expected), count)
    # a second token follows only where the first was accepted: compare after each first token
    for first in {tokens[0] for tokens in steps if len(tokens) > 1}:
        found = Counter(tokens[:2] for tokens in steps if tokens[0] == first and len(tokens) > 1)
        given = {pair: probability for pair, probability in expected.items() if pair[0] == first}
        total = sum(given.values())
        assert_chi_squared(found, {pair: p / total for pair, p in given.items()}, found.total())


def expected_of_two(model, root, options):
    rows = [Row(options, 0, (token,)) for token in range(len(model))]
    after = probabilities(model.double(), rows)
    return {
        (first, second): (after[root, first] * after[first, second]).item()
        for first in range(len(model))
        for second in range(len(model))
    }


def marginal(expected):
    found = Counter()
    for pair, probability in expected.items():
        found[pair[:1]] += probability
    return found


def assert_chi_squared(found, expected, count):
    """Within five standard deviations of what chance gives; nothing that cannot be."""
    assert all(expected[key] > 0 for key in found)
    cells = [(found[key], count * probability) for key, probability in expected.items() if probability > 0]
    freedom = len(cells) - 1
    chi_squared = sum((seen - mean) ** 2 / mean for seen, mean in cells)
    assert chi_squared <= freedom + 5 * (2 * freedom) ** 0.5
