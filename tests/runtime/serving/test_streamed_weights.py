"""Serving with weights in host memory gives the answers it gives without; what is streamed is not packed."""

import random

import pytest
import torch

from superscaler.planner.cluster import Cluster
from superscaler.runtime.loaded import load
from superscaler.runtime.packed_weights import PackedWeight
from superscaler.runtime.serving.offline import generate, load_engine
from superscaler.runtime.serving.sampling_params import SamplingParams
from superscaler.runtime.serving.settings import Settings
from superscaler.runtime.serving.worker import Worker
from superscaler.serve.compile import compile_serving
from superscaler.serve.paged import CacheSize
from tests.serve.language_models import VOCAB, language_model, logits_of

GREEDY = SamplingParams(temperature=0.0, max_tokens=8)
CACHE = CacheSize(pages=24, page_size=4)


def prompts(count=8):
    chance = random.Random(0)
    return [[chance.randrange(VOCAB) for _ in range(chance.randrange(1, 20))] for _ in range(count)]


def continued(model, prompt):
    tokens = list(prompt)
    for _ in range(GREEDY.max_tokens):
        tokens.append(int(logits_of(model, torch.tensor([tokens]))[0, -1].argmax()))
    return tuple(tokens[len(prompt) :])


@pytest.mark.parametrize("family", ["own-llama", "gpt2", "qwen3"])
def test_greedy_answers_are_those_of_the_model_alone(family, tmp_path):
    model = language_model(family)
    compile_serving(model, Cluster.local(1), "offload=parameters", cache=CACHE).save(tmp_path / "build")
    engine = load_engine(tmp_path / "build", Settings(chunk_tokens=5, host_pages=12))
    answers = generate(engine, prompts(), GREEDY)
    assert [one.tokens for (one,) in answers] == [continued(model, prompt) for prompt in prompts()]
    assert engine.load.pages_used == 0


def test_caches_stay_on_the_device_and_all_parameters_leave_it(tmp_path):
    model = language_model("own-llama")
    compile_serving(model, Cluster.local(1), "offload=parameters", cache=CACHE).save(tmp_path / "build")
    program = load(tmp_path / "build")
    assert program.on_host == {name for name, _ in model.named_parameters()}
    caches = program.build.described["serving"]["caches"]
    assert caches
    assert program.on_host.isdisjoint(caches)


def test_only_weights_that_stay_on_the_device_are_packed(tmp_path):
    def layers_alone(p):
        p.assign(p.everything(), p.mesh([0]))
        p.offload_parameters(p.select("layers.*"))

    model = language_model("own-llama", torch.float32)
    for name, plan in (("none", "none"), ("layers", layers_alone), ("all", "offload=parameters")):
        compile_serving(model, Cluster.local(1), plan, cache=CACHE).save(tmp_path / name)
    packed = {}
    for name in ("none", "layers", "all"):
        program = load(tmp_path / name)
        Worker(program)
        packed[name] = {key for key, x in program.weights.items() if isinstance(x, PackedWeight)}
    assert {"layers.0.attn.q.weight", "head.weight"} <= packed["none"]
    assert packed["layers"] == {key for key in packed["none"] if not key.startswith("layers.")}
    assert packed["all"] == set()
