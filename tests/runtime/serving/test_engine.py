"""An engine over a compiled program answers each request as the model alone would."""

import random
from dataclasses import replace

import pytest
import torch

from superscaler.errors import BuildError, RequestError
from superscaler.planner.cluster import Cluster
from superscaler.runtime.serving.offline import generate, load_engine
from superscaler.runtime.serving.request import Request
from superscaler.runtime.serving.sampling_params import SamplingParams
from superscaler.runtime.serving.settings import Settings
from superscaler.serve.compile import compile_serving
from superscaler.serve.paged import CacheSize
from tests.runtime.tiny_build import write_build
from tests.serve.language_models import VOCAB, language_model, logits_of

NEW = 10
GREEDY = SamplingParams(temperature=0.0, max_tokens=NEW)
SETTINGS = {
    "all at once": Settings(),
    "chunks": Settings(chunk_tokens=3, step_tokens=16, step_sequences=16),
    "swaps": Settings(chunk_tokens=5, host_pages=12),
}


@pytest.fixture(scope="module", params=["own-llama", "gpt2", "mistral"])
def served(request, tmp_path_factory):
    """A model, and a build of it with so few pages that sequences make room for each other."""
    model = language_model(request.param)
    folder = tmp_path_factory.mktemp(request.param) / "build"
    compile_serving(model, Cluster.local(1), cache=CacheSize(pages=24, page_size=4)).save(folder)
    return model, folder


def prompts(count=12):
    chance = random.Random(0)
    begin = [chance.randrange(VOCAB) for _ in range(9)]
    return [
        [*begin[: chance.randrange(10)], *(chance.randrange(VOCAB) for _ in range(chance.randrange(1, 12)))]
        for _ in range(count)
    ]


def continued(model, prompt, count=NEW):
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(logits_of(model, torch.tensor([tokens]))[0, -1].argmax()))
    return tuple(tokens[len(prompt) :])


@pytest.mark.parametrize("how", SETTINGS)
def test_greedy_answers_are_those_of_the_model_alone(served, how):
    model, folder = served
    engine = load_engine(folder, SETTINGS[how])
    answers = generate(engine, prompts(), GREEDY)
    assert [one.tokens for (one,) in answers] == [continued(model, prompt) for prompt in prompts()]
    assert {one.finish_reason for (one,) in answers} == {"length"}
    assert engine.load.preemptions > 0
    assert engine.load.pages_used == 0
    engine.scheduler.check_integrity()


def test_drawn_answers_do_not_depend_on_what_else_is_in_the_batch(served):
    _, folder = served
    params = SamplingParams(temperature=0.9, top_p=0.9, seed=7, n=2, max_tokens=NEW)
    together = generate(load_engine(folder, SETTINGS["chunks"]), prompts(), params)
    for prompt, both in zip(prompts(), together, strict=True):
        (alone,) = generate(load_engine(folder), [prompt], params)
        assert [one.tokens for one in alone] == [one.tokens for one in both]
    assert any(first.tokens != second.tokens for first, second in together)


def test_log_probabilities_are_the_models_own(served):
    model, folder = served
    params = SamplingParams(temperature=0.7, seed=3, logprobs=3, max_tokens=4)
    prompt = prompts()[0]
    ((one,),) = generate(load_engine(folder), [prompt], params)
    for number, found in enumerate(one.logprobs):
        tokens = torch.tensor([[*prompt, *one.tokens[:number]]])
        expected = logits_of(model, tokens)[0, -1].log_softmax(-1)
        assert found.chosen == pytest.approx(expected[one.tokens[number]].item(), abs=1e-9)
        values, ids = expected.topk(3)
        assert [token for token, _ in found.likeliest] == ids.tolist()
        assert [value for _, value in found.likeliest] == pytest.approx(values.tolist(), abs=1e-9)


def test_an_end_token_ends_a_text_and_is_its_last(served):
    model, folder = served
    whole = continued(model, prompts()[1])
    end = whole[4]
    ((one,),) = generate(load_engine(folder, Settings(end_tokens=frozenset({end}))), [prompts()[1]], GREEDY)
    assert one.tokens == whole[: whole.index(end) + 1]
    assert one.finish_reason == "stop"


def test_what_is_ended_gives_its_pages_back_and_the_others_go_on(served):
    model, folder = served
    engine = load_engine(folder)
    for number, prompt in enumerate(prompts(4)):
        engine.add(Request(str(number), tuple(prompt), GREEDY))
    found = {str(number): [] for number in range(4)}
    for step in range(100):
        for output in engine.step():
            found[output.request_id] += output.tokens
        if step == 3:
            (ended,) = engine.end("1")
            assert (ended.request_id, ended.tokens, ended.finish_reason) == ("1", (), "abort")
            assert engine.end("1") == []
    assert engine.is_idle
    assert engine.load.pages_used == 0
    for number in (0, 2, 3):
        assert tuple(found[str(number)]) == continued(model, prompts(4)[number])


def test_what_can_never_be_served_is_refused(served):
    _, folder = served
    with pytest.raises(RequestError, match="wants up to 1000 more"):
        load_engine(folder).add(Request("long", (1, 2, 3), SamplingParams(max_tokens=1000)))


@pytest.mark.parametrize(
    ("refused", "params", "message"),
    [
        ([[1], "a text"], GREEDY, "prompt 1 is 'a text'"),
        ([1, 2], GREEDY, "prompt 0 is 1"),
        ([[1], []], GREEDY, "has no tokens"),
        ([[1], [2] * 1000], GREEDY, "offline-1 has 1000 tokens"),
        ([[1], [2, VOCAB]], GREEDY, f"has the token {VOCAB}"),
        ([[1], [-1]], GREEDY, "has the token -1"),
        ([[1]], replace(GREEDY, logit_bias={VOCAB: 1.0}), f"has the token {VOCAB}"),
        ([[1]], replace(GREEDY, stop=("\n",)), "knows tokens, not texts"),
    ],
)
def test_what_cannot_be_continued_is_refused_and_the_engine_is_as_before(served, refused, params, message):
    model, folder = served
    engine = load_engine(folder)
    with pytest.raises(RequestError, match=message) as caught:
        generate(engine, refused, params)
    assert caught.value.remedy
    assert engine.is_idle
    [[answer]] = generate(engine, [[1, 2, 3]], GREEDY)
    assert answer.tokens == continued(model, [1, 2, 3])


def test_an_interruption_leaves_the_engine_idle(served):
    model, folder = served
    engine = load_engine(folder)
    step, steps = engine.step, iter(range(3))

    def interrupted():
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return step()

    engine.step = interrupted
    with pytest.raises(KeyboardInterrupt):
        generate(engine, prompts(3), GREEDY)
    engine.step = step
    assert engine.is_idle
    assert engine.load.pages_used == 0
    [[answer]] = generate(engine, [[1, 2, 3]], GREEDY)
    assert answer.tokens == continued(model, [1, 2, 3])


def test_a_build_that_was_not_compiled_for_serving_is_refused(tmp_path):
    with pytest.raises(BuildError, match="training build"):
        load_engine(write_build(tmp_path / "build", 1))
