"""A draft model proposes what its model says of each path, whatever it has in its cache."""

import random

import pytest
import torch

from superscaler.planner.cluster import Cluster
from superscaler.runtime.loaded import load_alone
from superscaler.runtime.serving.batch import verify_batch
from superscaler.runtime.serving.kv_cache import KvCache
from superscaler.runtime.serving.speculation.draft_model import DraftModel
from superscaler.runtime.serving.speculation.drafting import grow
from superscaler.runtime.serving.speculation.step import Wish
from superscaler.runtime.serving.speculation.token_tree import depths, expansion
from superscaler.runtime.serving.worker import Worker
from superscaler.serve.compile import compile_serving
from superscaler.serve.paged import CacheSize
from tests.runtime.serving.sampling_rows import row
from tests.serve.language_models import VOCAB, language_model, logits_of

MODEL = language_model("own-llama")
SHAPES = [
    expansion(1, 1, 1, 1),
    expansion(1, 1, 3, 1, 1),
    expansion(2, 2, 1),
    expansion(4),
    (-1, -1, 0, 2, 2, 3),
    (-1, 0, 0, 1, 3),
]


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("draft") / "build"
    compile_serving(MODEL, Cluster.local(1), cache=CacheSize(pages=40, page_size=4)).save(folder)
    return Worker(load_alone(folder, "cpu"))


class Draft:
    """A draft model whose batches and cache are checked."""

    def __init__(self, worker, pages=40, **options):
        self.worker, self.batches = worker, []
        self.cache = KvCache(pages, worker.page_size)
        self.model = DraftModel(self.run, self.cache, worker.longest, **options)

    def run(self, batch):
        verify_batch(batch, self.worker.page_size)
        self.batches.append(batch)
        return self.worker.run(batch)

    def propose(self, wishes):
        found = self.model.propose(wishes)
        self.cache.check_integrity()
        return found


def alone(wishes):
    """The proposals from the model itself, each path from its beginning."""

    def next_logits(places):
        texts = [
            [*wishes[place.wish].row.prompt, *wishes[place.wish].row.output, *place.path] for place in places
        ]
        return torch.stack([logits_of(MODEL, torch.tensor([text]))[0, -1] for text in texts])

    return grow(wishes, next_logits)


def same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.tree == other.tree
        assert one.drafts.keys() == other.drafts.keys()
        for key, draft in one.drafts.items():
            torch.testing.assert_close(draft.probabilities, other.drafts[key].probabilities)


@pytest.mark.parametrize("step_tokens", [2048, 7])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_proposals_are_those_of_the_model_as_texts_go_on(worker, temperature, step_tokens):
    chance = random.Random(1)
    draft = Draft(worker, step_tokens=step_tokens)
    texts = {name: [chance.randrange(VOCAB) for _ in range(chance.randrange(1, 12))] for name in "abcd"}
    outputs = {name: [] for name in texts}
    for _ in range(6):
        names = chance.sample(sorted(texts), 3)
        wishes = [
            Wish(
                name,
                row(temperature=temperature, prompt=texts[name], output=list(outputs[name])),
                chance.choice(SHAPES),
            )
            for name in names
        ]
        found = draft.propose(wishes)
        same(found, alone(wishes))
        for wish, proposal in zip(wishes, found, strict=True):
            path = proposal.tree.path(chance.randrange(-1, len(proposal.tree)))
            if chance.random() < 0.8:  # else the sequence had no room in the step
                outputs[wish.sequence] += [*path, chance.randrange(VOCAB)]
    for name in texts:
        draft.model.forget(name)
    assert draft.cache.free == draft.cache.pages


def test_a_chain_costs_a_token_a_level_and_what_was_accepted(worker):
    draft = Draft(worker)
    shape = expansion(1, 1, 1)
    (first,) = draft.propose([Wish("a", row(temperature=0, prompt=[1, 2, 3, 4]), shape)])
    assert [len(batch.tokens) for batch in draft.batches] == [4, 1, 1]
    assert not any(batch.visible for batch in draft.batches)
    draft.batches.clear()
    output = [*first.tree.tokens, 9]
    draft.propose([Wish("a", row(temperature=0, prompt=[1, 2, 3, 4], output=output), shape)])
    assert [len(batch.tokens) for batch in draft.batches] == [4, 1, 1]


def test_whoever_has_no_room_gets_no_proposal_and_the_idle_make_room(worker):
    draft = Draft(worker, pages=4)
    wishes = [Wish(name, row(temperature=0, prompt=[5] * 7), expansion(1, 1)) for name in "abc"]
    assert [len(proposal.tree) for proposal in draft.propose(wishes)] == [2, 2, 0]
    assert [len(proposal.tree) for proposal in draft.propose(wishes[2:])] == [2]
    assert [len(proposal.tree) for proposal in draft.propose(wishes[:1])] == [2]


def test_nothing_is_proposed_beyond_the_longest_sequence(worker):
    draft = DraftModel(worker.run, KvCache(40, 4), longest=10)
    for tokens in range(6, 12):
        wish = Wish(tokens, row(temperature=0, prompt=[1] * tokens), expansion(1, 1))
        (proposal,) = draft.propose([wish])
        assert max(depths(proposal.tree.parents), default=0) == (2 if tokens <= 8 else 0)
