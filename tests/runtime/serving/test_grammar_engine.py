"""An engine holds answers to a grammar, token by token as a loop over the model's own logits would."""

import math
import random
from collections import Counter

import pytest
import torch

from superscaler.errors import RequestError
from superscaler.planner.cluster import Cluster
from superscaler.runtime.serving.offline import generate, load_engine
from superscaler.runtime.serving.request import Request
from superscaler.runtime.serving.sampling_params import SamplingParams
from superscaler.runtime.serving.server.flight import Flight
from superscaler.runtime.serving.settings import Settings
from superscaler.serve.compile import compile_serving
from superscaler.serve.paged import CacheSize
from tests.runtime.serving.finite_language import FiniteGrammars, named
from tests.serve.language_models import VOCAB, language_model, logits_of, model_like

END = 7
CHANCE = random.Random(1)
LANGUAGES = {
    # words that begin alike, and some that are the beginnings of others
    "words": {
        tuple(CHANCE.choice((3, 20, 41, 60, 95)) for _ in range(CHANCE.randrange(1, 9))) for _ in range(200)
    },
    "one": {(5, 6, 8, 9, 10, 11)},
    "endless": {tuple([11] * length) for length in range(1, 40)},
    "long": {tuple(CHANCE.choice(pair) for pair in [(3, 20), (41, 60)] * 6) for _ in range(50)},
}


@pytest.fixture(scope="module")
def builds(tmp_path_factory):
    """Folders: a model in few pages and in many, one like it, and another."""
    home = tmp_path_factory.mktemp("builds")
    for name, model, pages in (
        ("tight", language_model("own-llama"), 20),
        ("roomy", language_model("own-llama"), 800),
        ("like", model_like("own-llama"), 800),
        ("other", language_model("gpt2"), 800),
    ):
        compile_serving(model, Cluster.local(1), cache=CacheSize(pages, page_size=4)).save(home / name)
    return home


def engine_of(folder, ends=frozenset({END}), **settings):
    engine = load_engine(folder, Settings(end_tokens=ends, **settings))
    engine._grammars = FiniteGrammars(LANGUAGES, VOCAB)
    return engine


def prompts(count=10):
    chance = random.Random(0)
    return [[chance.randrange(VOCAB) for _ in range(chance.randrange(2, 10))] for _ in range(count)]


def greedy(name, **more):
    return SamplingParams(temperature=0.0, max_tokens=12, grammar=named(name), **more)


def brute_force(model, prompt, words, ends=(END,), most=12):
    """Greedy tokens, each the likeliest of those that are tried one by one, and why they end."""
    taken = ()
    while True:
        logits = logits_of(model, torch.tensor([[*prompt, *taken]]))[0, -1]
        order = logits.argsort(descending=True).tolist()

        def may_follow(token, taken=taken):
            if token in ends:
                return taken in words
            return any(word[: len(taken) + 1] == (*taken, token) for word in words)

        token = next(token for token in order if may_follow(token))
        if token in ends:
            return (*taken, token), "stop"
        taken = (*taken, token)
        if taken in words and not any(word[: len(taken)] == taken != word for word in words):
            return taken, "stop"
        if len(taken) == most:
            return taken, "length"


@pytest.mark.parametrize("name", ["words", "one", "endless", "long"])
@pytest.mark.parametrize(
    "how", [{}, {"chunk_tokens": 3, "step_tokens": 16, "step_sequences": 16}, {"host_pages": 12}]
)
def test_greedy_answers_are_those_of_a_loop_that_tries_each_token(builds, name, how):
    model = language_model("own-llama")
    engine = engine_of(builds / "tight", **how)
    answers = generate(engine, prompts(), greedy(name))
    expected = [brute_force(model, prompt, LANGUAGES[name]) for prompt in prompts()]
    assert [(one.tokens, one.finish_reason) for (one,) in answers] == expected
    assert engine.load.preemptions > 0 or name != "long"
    assert engine._matchers == {}
    assert engine.load.pages_used == 0
    engine.scheduler.check_integrity()


def test_without_an_end_token_an_answer_ends_where_nothing_may_follow(builds):
    model = language_model("own-llama")
    for ignored, ends in ((False, frozenset()), (True, frozenset({END}))):
        engine = engine_of(builds / "roomy", ends)
        answers = generate(engine, prompts(), greedy("words", ignore_eos=ignored))
        expected = [brute_force(model, prompt, LANGUAGES["words"], ends=()) for prompt in prompts()]
        assert [(one.tokens, one.finish_reason) for (one,) in answers] == expected


def test_an_answer_complete_with_its_last_token_of_room_has_stopped(builds):
    params = SamplingParams(temperature=0.0, max_tokens=6, grammar=named("one"))
    ((one,),) = generate(engine_of(builds / "roomy"), [[1, 2]], params)
    assert (one.tokens, one.finish_reason) == ((5, 6, 8, 9, 10, 11), "stop")
    params = SamplingParams(temperature=0.0, max_tokens=5, grammar=named("one"))
    ((one,),) = generate(engine_of(builds / "roomy"), [[1, 2]], params)
    assert (one.tokens, one.finish_reason) == ((5, 6, 8, 9, 10), "length")


def test_a_stop_token_of_the_request_ends_an_answer_within_the_grammar_too(builds):
    params = greedy("one", stop_token_ids=frozenset({9}))
    ((one,),) = generate(engine_of(builds / "roomy"), [[1, 2]], params)
    assert one.finish_reason == "stop"
    assert one.tokens == (5, 6, 8, 9)


def test_drawn_answers_are_words_each_sequence_its_own(builds):
    params = SamplingParams(temperature=2.0, seed=3, n=6, max_tokens=12, grammar=named("words"))
    engine = engine_of(builds / "roomy")
    answers = generate(engine, prompts(), params)
    for each in answers:
        for one in each:
            assert tuple(token for token in one.tokens if token != END) in LANGUAGES["words"]
            assert one.finish_reason == "stop"
        assert len({one.tokens for one in each}) > 1
    assert engine._grammars.begun == len(answers)
    for prompt, each in zip(prompts(), answers, strict=True):
        (alone,) = generate(engine_of(builds / "tight"), [prompt], params)
        assert [one.tokens for one in alone] == [one.tokens for one in each]


def test_requests_without_a_grammar_are_untouched_by_those_beside_them(builds):
    plain = SamplingParams(temperature=0.9, seed=5, max_tokens=12, logprobs=2)
    alone = generate(engine_of(builds / "tight"), prompts(), plain)
    engine = engine_of(builds / "tight")
    for number, prompt in enumerate(prompts()):
        engine.add(Request(f"held-{number}", tuple(prompt), greedy("words")))
        engine.add(Request(f"free-{number}", tuple(prompt), plain))
    found = {f"free-{number}": ([], []) for number in range(len(prompts()))}
    while not engine.is_idle:
        for output in engine.step():
            if output.request_id in found:
                found[output.request_id][0].extend(output.tokens)
                found[output.request_id][1].extend(output.logprobs)
    for (one,), (tokens, logprobs) in zip(alone, found.values(), strict=True):
        assert one.tokens == tuple(tokens)
        assert [each.chosen for each in one.logprobs] == pytest.approx(
            [each.chosen for each in logprobs], abs=1e-9
        )


def test_log_probabilities_are_the_models_own_before_the_grammar(builds):
    model = language_model("own-llama")
    ((one,),) = generate(engine_of(builds / "roomy"), [[1, 2]], greedy("one", logprobs=2))
    for number, found in enumerate(one.logprobs):
        tokens = torch.tensor([[1, 2, *one.tokens[:number]]])
        expected = logits_of(model, tokens)[0, -1].log_softmax(-1)
        assert found.chosen == pytest.approx(expected[one.tokens[number]].item(), abs=1e-9)
        assert [token for token, _ in found.likeliest] == expected.topk(2).indices.tolist()


def test_penalties_and_biases_move_a_choice_within_the_grammar_alone(builds):
    bias = {token: 100.0 for token in range(VOCAB) if token not in (3, 20, 41, 60, 95)} | {41: -100.0}
    words = LANGUAGES["words"]
    answers = generate(engine_of(builds / "roomy"), prompts(), greedy("words", logit_bias=bias))
    for (one,) in answers:
        taken = tuple(token for token in one.tokens if token != END)
        assert taken in words
        for place, token in enumerate(taken):
            others = {word[place] for word in words if word[:place] == taken[:place] and len(word) > place}
            assert token != 41 or others == {41}


SPECULATORS = {
    "n-gram": ("ngram",),
    "itself": ("roomy",),
    "one that knows little": ("other",),
    "all": ("ngram", "like", "other"),
}


@pytest.mark.parametrize("tree", ["1,1,1,1", "1,3,1,2", "5"])
@pytest.mark.parametrize("speculators", SPECULATORS)
def test_greedy_answers_are_the_same_with_speculation(builds, speculators, tree):
    words = tuple(word if word == "ngram" else str(builds / word) for word in SPECULATORS[speculators])
    for name in ("words", "one", "long"):
        expected = [one.tokens for (one,) in generate(engine_of(builds / "roomy"), prompts(), greedy(name))]
        for folder in ("roomy", "tight"):
            engine = engine_of(builds / folder, speculate=words, tree=tree)
            assert [one.tokens for (one,) in generate(engine, prompts(), greedy(name))] == expected
            assert engine._matchers == {}
            if speculators == "itself":  # it is held to the grammar as well
                assert engine.load.accepted_tokens > 0
                if tree == "1,1,1,1" and name == "long":
                    assert engine.load.accepted_tokens == engine.load.draft_tokens


@pytest.mark.parametrize("words", [("like",), ("like", "other"), ("ngram",)])
def test_drawn_answers_have_the_distribution_of_the_masked_model(builds, words):
    """Pearson's statistic of whole answers, beside the products of the masked model's probabilities."""
    model, prompt, count, ends = language_model("own-llama"), prompts()[1] * 2, 600, (END,)
    language = {(a, b, c) for a in (20, 41, 60) for b in (1, 2) for c in (3, 4)} | {(20,), (41, 1)}
    speculate = tuple(word if word == "ngram" else str(builds / word) for word in words)
    engine = engine_of(builds / "roomy", speculate=speculate, tree="2,2,1")
    engine._grammars = FiniteGrammars({"few": language}, VOCAB)
    for number in range(count):
        params = SamplingParams(temperature=3.0, seed=number, max_tokens=9, grammar=named("few"))
        engine.add(Request(str(number), tuple(prompt), params))
    found = {str(number): () for number in range(count)}
    while not engine.is_idle:
        for output in engine.step():
            found[output.request_id] += output.tokens
    seen = Counter(found.values())
    expected = {path: count * chance for path, chance in chances(model, prompt, language, ends).items()}
    assert math.isclose(sum(expected.values()), count)
    assert seen.keys() <= expected.keys()
    if words != ("ngram",):
        assert engine.load.accepted_tokens > 0
    cells = [(seen[path], value) for path, value in expected.items() if value >= 5]
    cells.append((count - sum(number for number, _ in cells), sum(v for v in expected.values() if v < 5)))
    statistic = sum((number - value) ** 2 / value for number, value in cells if value)
    assert statistic < len(cells) + 4 * (2 * len(cells)) ** 0.5


def chances(model, prompt, language, ends, taken=()):
    """The probability of each whole answer, an end token included where one is drawn."""
    more = {word[len(taken)] for word in language if word[: len(taken)] == taken and len(word) > len(taken)}
    if not more:
        return {taken: 1.0}
    allowed = sorted(more | (set(ends) if taken in language else set()))
    logits = logits_of(model, torch.tensor([[*prompt, *taken]]))[0, -1] / 3.0
    found = {}
    for token, chance in zip(allowed, logits[allowed].softmax(-1).tolist(), strict=True):
        if token in ends:
            found[*taken, token] = chance
        else:
            rest = chances(model, prompt, language, ends, (*taken, token))
            found |= {path: chance * value for path, value in rest.items()}
    return found


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {"temperature": 2.0, "n": 3}])
@pytest.mark.parametrize("deaths", [(1,), (2, 4), (1, 2, 3)])
def test_an_engine_that_takes_over_goes_on_in_the_grammar(builds, params, deaths):
    """As the server does it: what was generated is sent with the prompt, to an engine that has not seen it."""
    sampling = SamplingParams(seed=11, max_tokens=12, grammar=named("words"), **params)
    for number, prompt in enumerate(prompts()):
        request = Request(str(number), tuple(prompt), sampling)
        whole = [one.tokens for one in generate(engine_of(builds / "roomy"), [prompt], sampling)[0]]
        flight, steps = Flight(request), 0
        engine = engine_of(builds / "roomy")
        engine.add(request)
        while not flight.is_over:
            steps += 1
            for output in engine.step():
                flight.take(output)
            if steps in deaths and not flight.is_over:
                flight.is_sent, engine = True, engine_of(builds / "roomy")
                engine.add(flight.again())
        assert [tuple(tokens) for tokens in flight.tokens] == whole


def test_what_is_cancelled_leaves_no_matcher_behind(builds):
    engine = engine_of(builds / "roomy")
    params = SamplingParams(temperature=2.0, n=3, max_tokens=12, grammar=named("endless"))
    engine.add(Request("a", (1, 2), params))
    engine.step()
    assert len(engine._matchers) == 3
    engine.end("a", 1)
    assert len(engine._matchers) == 2
    engine.end("a")
    assert engine._matchers == {}
    assert engine.is_idle


class Stuck:
    """A grammar that gives up after a token."""

    is_over, is_complete = False, False

    def allowed(self):
        return torch.full((VOCAB // 8,), 255, dtype=torch.uint8)

    def take(self, token):
        self.is_over = True

    def copy(self):
        return Stuck()


class SomeStuck(FiniteGrammars):
    def begin(self, grammar, end_tokens):
        return Stuck() if grammar.text == "stuck" else super().begin(grammar, end_tokens)


def test_a_grammar_that_finds_no_way_on_fails_its_own_sequence_only(builds):
    engine = engine_of(builds / "roomy", ends=frozenset())
    engine._grammars = SomeStuck(LANGUAGES, VOCAB)
    engine.add(Request("bad", (1, 2), greedy("stuck")))
    engine.add(Request("good", (1, 2), greedy("one")))
    reasons = {}
    while not engine.is_idle:
        reasons |= {output.request_id: output.finish_reason for output in engine.step()}
    assert reasons == {"bad": "error", "good": "stop"}
    assert engine._matchers == {}


def test_a_grammar_that_is_refused_leaves_nothing_behind(builds):
    engine = engine_of(builds / "roomy")
    with pytest.raises(RequestError, match="nonsense is no grammar"):
        engine.add(Request("a", (1, 2), greedy("nonsense")))
    assert engine.is_idle
    assert engine._open == {}
    generate(engine, [[1, 2]], greedy("one"))


def test_an_engine_without_a_tokenizer_says_what_it_lacks(builds):
    with pytest.raises(RequestError, match=r"does not know the texts of tokens\n  remedy: .*--tokenizer"):
        generate(load_engine(builds / "roomy"), [[1, 2]], greedy("one"))
