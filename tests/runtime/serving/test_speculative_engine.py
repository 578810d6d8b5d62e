"""An engine that speculates gives the tokens it gives without, only in fewer steps."""

import random
from collections import Counter

import pytest
import torch

from benchmarks.served import Served
from models import gpt
from superscaler.errors import BuildError, ServingError
from superscaler.planner.cluster import Cluster
from superscaler.runtime.serving.offline import generate, load_engine
from superscaler.runtime.serving.request import Request
from superscaler.runtime.serving.sampling_params import SamplingParams
from superscaler.runtime.serving.settings import Settings
from superscaler.serve.compile import compile_serving
from superscaler.serve.paged import CacheSize
from tests.runtime.tiny_build import write_build
from tests.serve.language_models import VOCAB, language_model, logits_of, model_like

NEW = 12
GREEDY = SamplingParams(temperature=0.0, max_tokens=NEW)
ROOMY = CacheSize(pages=800, page_size=4)


@pytest.fixture(scope="module")
def builds(tmp_path_factory):
    """Folders: a target in a small cache and in one with room, one like it, and two that know nothing of it."""
    home = tmp_path_factory.mktemp("builds")
    for name, model, cache in (
        ("target", language_model("own-llama"), CacheSize(pages=28, page_size=4)),
        ("roomy", language_model("own-llama"), ROOMY),
        ("like", model_like("own-llama"), ROOMY),
        ("draft", language_model("own-gpt"), ROOMY),
        ("other", language_model("gpt2"), CacheSize(pages=20, page_size=4)),
    ):
        compile_serving(model, Cluster.local(1), cache=cache).save(home / name)
    return home


def prompts(count=10):
    """Some begin as others do, and every other one says a thing twice."""
    chance = random.Random(0)
    begin = [chance.randrange(VOCAB) for _ in range(6)]
    ends = [[chance.randrange(VOCAB) for _ in range(chance.randrange(2, 8))] for _ in range(count)]
    return [[*begin * chance.randrange(2), *end * (1 + number % 2)] for number, end in enumerate(ends)]


def tokens_of(engine, params=GREEDY):
    return [[one.tokens for one in each] for each in generate(engine, prompts(), params)]


SPECULATORS = {
    "n-gram": ("ngram",),
    "a draft": ("draft",),
    "itself": ("roomy",),
    "two drafts": ("draft", "other"),
    "all kinds": ("ngram", "roomy", "other"),
}
CHUNKED = {"chunk_tokens": 3, "step_tokens": 24, "step_sequences": 16}


@pytest.mark.parametrize("tree", ["auto", "1,1,1,1", "1,3,1,2", "5"])
@pytest.mark.parametrize("speculators", SPECULATORS)
def test_greedy_answers_are_those_of_the_engine_without(builds, speculators, tree):
    plain = load_engine(builds / "target")
    expected = tokens_of(plain)
    words = tuple(word if word == "ngram" else str(builds / word) for word in SPECULATORS[speculators])
    preemptions = 0
    for more in ({}, CHUNKED, {"host_pages": 14}):
        engine = load_engine(builds / "target", Settings(speculate=words, tree=tree, **more))
        assert tokens_of(engine) == expected
        assert engine.load.pages_used == 0
        preemptions += engine.load.preemptions
        engine.scheduler.check_integrity()
        if "roomy" in SPECULATORS[speculators] and tree != "auto":
            assert engine.load.accepted_tokens > 0
        levels = (
            engine.load.accepted_by_level
        )  # of a tree that was accepted as far as a level, also those above
        assert list(levels) == sorted(levels, reverse=True)
        assert sum(levels) == engine.load.accepted_tokens
    assert preemptions > 0


def test_a_draft_that_is_the_model_is_always_right(builds):
    settings = Settings(speculate=(str(builds / "roomy"),), tree="1,1,1,1")
    engine = load_engine(builds / "roomy", settings)
    engine.add(Request("one", (3, 1, 4), SamplingParams(temperature=0.0, max_tokens=16)))
    given = [len(output.tokens) for _ in range(4) for output in engine.step()]
    assert given == [1, 5, 5, 5]
    assert engine.is_idle
    assert engine.load.accepted_tokens == engine.load.draft_tokens == 12
    assert engine.load.accepted_by_level == (3, 3, 3, 3)


def test_a_tree_is_no_deeper_than_there_is_room(builds):
    settings = Settings(speculate=(str(builds / "roomy"),), tree="1,1,1,1")
    for most in range(1, 8):
        engine = load_engine(builds / "roomy", settings)
        params = SamplingParams(temperature=0.0, max_tokens=most)
        assert tokens_of(engine, params) == tokens_of(load_engine(builds / "roomy"), params)
        assert engine.load.accepted_tokens == engine.load.draft_tokens


@pytest.mark.parametrize("place", range(5))
def test_an_end_token_in_an_accepted_path_ends_the_text(builds, place):
    ((whole,),) = [tokens_of(load_engine(builds / "roomy"))[1]]
    ends = frozenset({whole[place]})
    settings = Settings(end_tokens=ends, speculate=(str(builds / "roomy"),), tree="1,1,1,1,1,1,1")
    ((one,),) = generate(load_engine(builds / "roomy", settings), [prompts()[1]], GREEDY)
    assert one.tokens == whole[: whole.index(whole[place]) + 1]
    assert one.finish_reason == "stop"


def test_what_was_not_drawn_does_not_change_what_a_seed_gives(builds):
    params = SamplingParams(temperature=0.8, top_p=0.9, seed=5, n=2, max_tokens=NEW, logprobs=1)
    expected = tokens_of(load_engine(builds / "target"), params)
    for tree in ("1,1,1", "4,1"):
        engine = load_engine(builds / "target", Settings(speculate=("ngram",), tree=tree))
        assert tokens_of(engine, params) == expected


@pytest.mark.parametrize("words", [("like",), ("like", "draft"), ("like", "roomy")])
def test_drawn_answers_have_the_distribution_of_the_model(builds, words):
    """Pearson's statistic of three tokens, of 3 likely ones each, beside the products of their probabilities."""
    model, prompt, count = language_model("own-llama"), prompts()[1], 500
    params = [SamplingParams(temperature=1.5, top_k=3, seed=seed, max_tokens=3) for seed in range(count)]
    settings = Settings(speculate=tuple(str(builds / word) for word in words), tree="2,1")
    engine = load_engine(builds / "roomy", settings)
    for number, each in enumerate(params):
        engine.add(Request(str(number), tuple(prompt), each))
    found: dict[str, list[int]] = {str(number): [] for number in range(count)}
    while not engine.is_idle:
        for output in engine.step():
            found[output.request_id] += output.tokens
    seen = Counter(map(tuple, found.values()))
    expected = {path: count * chance for path, chance in paths(model, prompt, 3).items()}
    assert seen.keys() <= expected.keys()
    assert engine.load.accepted_tokens > 0
    small = sum(value for value in expected.values() if value < 5)
    cells = [(seen[path], value) for path, value in expected.items() if value >= 5]
    cells.append((count - sum(number for number, _ in cells), small))
    statistic = sum((number - value) ** 2 / value for number, value in cells if value)
    assert statistic < len(cells) + 4 * (2 * len(cells)) ** 0.5


def paths(model, prompt, depth):
    """The probability of each continuation of `depth` tokens."""
    found = {(): 1.0}
    for _ in range(depth):
        more = {}
        for path, chance in found.items():
            logits = logits_of(model, torch.tensor([[*prompt, *path]]))[0, -1] / 1.5
            values, tokens = logits.topk(3)
            for token, share in zip(tokens.tolist(), values.softmax(-1).tolist(), strict=True):
                more[*path, token] = chance * share
        found = more
    return found


@pytest.mark.ranks
@pytest.mark.parametrize("plan", ["tp=2", "pp=2"])
def test_ranks_check_what_the_first_drafts(builds, plan, tmp_path):
    compile_serving(language_model("own-llama"), Cluster.local(2), plan, cache=ROOMY).save(tmp_path / "two")
    requests = [Request(str(number), tuple(prompt), GREEDY) for number, prompt in enumerate(prompts())]
    options = ["--speculate", builds / "roomy", "--speculate", "ngram", "--tree", "1,2,1"]
    with Served(tmp_path / "two", options, ranks=2) as engine:
        found = engine.answers(requests)
    assert [[found[request.id]] for request in requests] == tokens_of(load_engine(builds / "roomy"))
    assert engine.loads[-1].accepted_tokens > 2 * engine.loads[-1].drafts


def test_a_draft_has_the_vocabulary_of_the_model(builds, tmp_path):
    torch.manual_seed(0)
    model = gpt.build("tiny", layers=1, vocab=64, seq=32)
    compile_serving(model, Cluster.local(1)).save(tmp_path / "small")
    with pytest.raises(BuildError, match=r"has 64 tokens, and the one .* has 96"):
        load_engine(builds / "target", Settings(speculate=(str(tmp_path / "small"),)))


def test_a_draft_is_for_inference_on_one_device(builds, tmp_path):
    model = language_model("own-llama")
    compile_serving(model, Cluster.local(2), "tp=2", cache=ROOMY).save(tmp_path / "two")
    for folder, message in (
        (write_build(tmp_path / "trains", 1), "a build for training"),
        (tmp_path / "two", "a build for 2 devices"),
    ):
        with pytest.raises(BuildError, match=message):
            load_engine(builds / "target", Settings(speculate=(str(folder),)))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (Settings(speculate=("ngram",), tree="1,0"), ServingError, "'1,0' is no tree"),
        (Settings(speculate=("ngram",), tree="wide"), ServingError, "'wide' is no tree"),
        (Settings(speculate=("ngram",), tree="9,9,9,9"), ServingError, "more than 1024 nodes"),
        (Settings(speculate=("nowhere",)), BuildError, "no folder nowhere"),
    ],
)
def test_words_that_make_no_sense_are_refused(builds, settings, error, message):
    with pytest.raises(error, match=message):
        load_engine(builds / "target", settings)
