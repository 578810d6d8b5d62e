"""Several ranks, under torchrun, answer as one process does."""

import random

import pytest

from benchmarks.served import Served
from superscaler.planner.cluster import Cluster
from superscaler.runtime.serving.offline import generate, load_engine
from superscaler.runtime.serving.request import Request
from superscaler.runtime.serving.sampling_params import SamplingParams
from superscaler.serve.compile import compile_serving
from superscaler.serve.paged import CacheSize
from tests.serve.language_models import VOCAB, language_model

PARAMS = SamplingParams(temperature=0.0, max_tokens=8)
CACHE = CacheSize(pages=16, page_size=4)


@pytest.mark.ranks
@pytest.mark.parametrize("plan", ["tp=2", "pp=2", "tp=2,offload=parameters"])
def test_the_ranks_of_a_plan_answer_as_one_device_does(plan, tmp_path):
    model = language_model("qwen3")
    chance = random.Random(1)
    prompts = [[chance.randrange(VOCAB) for _ in range(chance.randrange(1, 20))] for _ in range(8)]
    for name, cluster, words in (("one", Cluster.local(1), "none"), ("two", Cluster.local(2), plan)):
        compile_serving(model, cluster, words, cache=CACHE).save(tmp_path / name)
    expected = [one.tokens for (one,) in generate(load_engine(tmp_path / "one"), prompts, PARAMS)]
    requests = [Request(str(number), tuple(prompt), PARAMS) for number, prompt in enumerate(prompts)]
    with Served(tmp_path / "two", ["--chunk-tokens", 5, "--host-pages", 8], ranks=2) as engine:
        assert (engine.ready.plan, engine.ready.ranks, engine.ready.vocab) == (plan, 2, VOCAB)
        found = engine.answers(requests)
    assert [found[request.id] for request in requests] == expected
    assert engine.loads[-1].pages_used == 0
