"""A model that is no language model is refused in a sentence: what is wanted, what it does, what to do."""

import logging

import pytest
import torch
import transformers
from torch import nn

from models import alphafold2, gpt, mbart, mlp, swin
from superscaler.errors import TraceError
from superscaler.ir.deferred import deferred_init
from superscaler.planner.cluster import Cluster
from superscaler.serve.compile import compile_serving
from superscaler.serve.language_model import configured_length, trace_language_model
from superscaler.serve.paged import CacheSize
from tests.serve.language_models import FAMILIES, language_model

WANTED = r"cannot be served: a servable model maps tokens, int64 \[batch, seq\], alone to logits"


class Scores(nn.Module):
    """One number per token."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(8, 4)

    def forward(self, tokens):
        return self.embed(tokens).sum(-1)


class Classifier(Scores):
    def forward(self, tokens):
        return self.embed(tokens).mean(1)


class Wide(nn.Module):
    """As wide as the example is long, so that it runs on tokens as if they were measurements."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 3)

    def forward(self, x):
        return self.layer(x)


class Deciding(Scores):
    """A language model but for a branch on the value of a token."""

    def forward(self, tokens):
        return self.embed(tokens if tokens[0, 0] > 0 else tokens + 1)


class Spread(Scores):
    def forward(self, *tokens):
        return self.embed(tokens[0])


@pytest.mark.parametrize(
    ("build", "does"),
    [
        (mlp.build, r"cannot be run on tokens: RuntimeError: .*\n  at: models/mlp.py:\d+\n"),
        (
            swin.build,
            r"cannot be run on tokens: ValueError: not enough values .*\n  at: models/swin.py:\d+\n",
        ),
        (mbart.build, r"needs source, shifted\n"),
        (alphafold2.build, r"needs target, msa\n"),
        (Scores, r"returns .*float32\[batch, seq\]\n"),
        (Classifier, r"returns .*float32\[batch, 4\]\n"),
        (Wide, r"makes float32 \[2, 3\] of \[2, 16\] tokens\n"),
        (Spread, r"names no input\n"),
    ],
)
@pytest.mark.parametrize("is_deferred", [False, True])
def test_what_is_no_language_model_is_told_what_one_is(build, does, is_deferred, monkeypatch):
    if is_deferred:
        with deferred_init():
            model = build()
    else:
        model = build()
    log, said = logging.getLogger("torch._subclasses.fake_tensor"), []
    monkeypatch.setattr(log, "callHandlers", said.append)
    with pytest.raises(TraceError, match=f"{WANTED}.*, and this one {does}") as raised:
        trace_language_model(model)
    assert "superscaler compile --inference" in raised.value.remedy
    assert not said, "the refusal is all that is said"
    assert not log.disabled


def test_a_language_model_that_cannot_be_traced_is_told_why():
    with pytest.raises(TraceError, match="decides by the value of a tensor"):
        trace_language_model(Deciding())


@pytest.mark.parametrize("family", [*FAMILIES, "own-gpt", "own-llama"])
def test_language_models_are_traced_on_tokens_whose_batch_and_length_vary(family):
    graph = trace_language_model(language_model(family))
    (name,) = graph.inputs
    batch, seq = graph.tensors[name].shape
    assert (str(batch), str(seq)) == ("batch", "seq")
    assert graph.tensors[graph.outputs[0]].shape == (batch, seq, 96)


def test_further_inputs_that_may_be_left_out_are():
    assert trace_language_model(gpt.build("tiny")).inputs == ("tokens",)
    assert torch.is_grad_enabled()


def llama_of(positions, **rotary):
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=positions, rope_parameters={"rope_theta": 1e4, "rope_type": "default", **rotary},
        )
    )  # fmt: skip


def test_sequences_are_as_long_as_the_configuration_says():
    stretched = {"factor": 4.0, "original_max_position_embeddings": 64}
    assert configured_length(llama_of(64)) == 64
    assert configured_length(llama_of(64, rope_type="linear", factor=4.0)) == 256
    assert configured_length(llama_of(64, rope_type="yarn", **stretched)) == 256
    assert configured_length(llama_of(256, rope_type="yarn", **stretched)) == 256  # which says it already
    more = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    assert configured_length(llama_of(512, rope_type="llama3", **stretched, **more)) == 512
    assert configured_length(language_model("own-llama")) is None


def test_a_model_is_served_for_what_it_was_trained_for_unless_the_user_says_more():
    cache = CacheSize(pages=64, page_size=4)
    found = compile_serving(llama_of(64), Cluster.local(1), cache=cache)
    assert found.servable.longest == 64
    found = compile_serving(llama_of(64), Cluster.local(1), cache=cache, longest=100)
    assert found.servable.longest == 100
