"""A lowered model says of every token, a step at a time, what the model says of whole sequences."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import superscaler as ss
from superscaler.errors import TraceError
from superscaler.serve import lower
from superscaler.serve.paged import CacheSize
from tests.serve.language_models import FAMILIES, VOCAB, language_model, logits_of
from tests.serve.stepped import Stepped

CACHE = CacheSize(pages=40, page_size=4)
DYNAMIC = {"input_ids": ("batch", "seq")}


def traced(model, batch=2):
    tokens = torch.randint(VOCAB, (batch, 12))
    if hasattr(model, "config"):
        sizes = {"input_ids": ("batch" if batch > 1 else None, "seq")}
        return ss.trace(model, (), {"input_ids": tokens, "use_cache": False}, dynamic=sizes)
    return ss.trace(model, (tokens,), dynamic={"tokens": ("batch" if batch > 1 else None, "seq")})


def stepped(model, servable):
    return Stepped(servable, dict(model.named_parameters()) | dict(model.named_buffers()))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("family", [*FAMILIES, "own-gpt", "own-llama"])
def test_steps_of_several_sequences_give_the_logits_of_whole_ones(family, batch):
    model = language_model(family)
    run = stepped(model, lower(traced(model, batch), cache=CACHE))
    tokens = torch.randint(VOCAB, (3, 24), generator=torch.Generator().manual_seed(1))
    expected = logits_of(model, tokens)
    found = {number: [] for number in range(3)}
    place = dict.fromkeys(range(3), 0)
    for counts in [(7, 0, 3), (1, 11, 1), (1, 1, 0), (8, 1, 9), (1, 4, 11), (6, 7, 0)]:
        new = {
            number: tokens[number, place[number] : place[number] + count].tolist()
            for number, count in enumerate(counts)
            if count
        }
        rows = run.step(new)
        for number, own in new.items():
            found[number].append(rows[: len(own)])
            rows = rows[len(own) :]
            place[number] += len(own)
    for number, rows in found.items():
        torch.testing.assert_close(torch.cat(rows), expected[number], rtol=1e-9, atol=1e-9)


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_a_token_tree_gives_every_node_the_logits_of_its_own_path(data):
    model = language_model("llama")
    run = stepped(model, LLAMA)
    prompt = data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9))
    run.step({0: prompt})
    count = data.draw(st.integers(2, 7))
    parents = [-1] + [data.draw(st.integers(0, i - 1)) for i in range(1, count)]
    nodes = data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=count, max_size=count))
    paths = []
    for node, parent in enumerate(parents):
        paths.append([*(paths[parent] if node else []), node])
    visible = torch.zeros(count, count, dtype=torch.bool)
    for node, path in enumerate(paths):
        visible[node, path] = True
    rows = run.step({0: nodes}, depths={0: [len(path) - 1 for path in paths]}, visible=visible)
    for row, path in zip(rows, paths, strict=True):
        whole = torch.tensor([[*prompt, *(nodes[node] for node in path)]])
        torch.testing.assert_close(row, logits_of(model, whole)[0, -1], rtol=1e-9, atol=1e-9)


LLAMA = lower(traced(language_model("llama")), cache=CACHE)


def test_logits_are_those_of_the_tokens_wanted():
    model = language_model("llama")
    all_rows = stepped(model, LLAMA).step({0: [5, 6, 7], 1: [8, 9]})
    torch.testing.assert_close(
        stepped(model, LLAMA).step({0: [5, 6, 7], 1: [8, 9]}, wanted=[4, 2]), all_rows[[4, 2]]
    )


def test_heads_that_share_keys_are_cached_once():
    shapes = {tensor.shape for tensor in LLAMA.graph.tensors.values() if "cached_" in tensor.name}
    assert shapes == {(CACHE.slots, 2, 8)}


def test_how_long_a_sequence_may_be_follows_from_the_table_of_positions():
    assert lower(traced(language_model("gpt2")), cache=CacheSize(100, 16)).longest == 128
    assert lower(traced(language_model("opt")), cache=CacheSize(100, 16)).longest == 128
    assert LLAMA.longest == CACHE.slots
    assert lower(traced(language_model("llama")), cache=CacheSize(100, 16), longest=77).longest == 77


def test_a_window_is_found_in_the_mask():
    windows = {
        operator.keyword("window")
        for operator in lower(traced(language_model("mistral")), cache=CACHE).graph.operators
        if operator.kind == "paged_attention"
    }
    assert windows == {10}


class Model(nn.Module):
    """One attention, to which subclasses do what cannot be served."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, 8)
        self.head = nn.Linear(8, VOCAB)

    def attend(self, x, tokens):
        return F.scaled_dot_product_attention(x, x, x, is_causal=True)

    def forward(self, tokens):
        x = self.embed(tokens).unsqueeze(1)
        return self.head(self.attend(x, tokens).squeeze(1))


class Bidirectional(Model):
    def attend(self, x, tokens):
        return F.scaled_dot_product_attention(x, x, x)


class Alibi(Model):
    def attend(self, x, tokens):
        place = torch.arange(x.shape[2])
        bias = -(place[:, None] - place).abs().to(x.dtype)
        return F.scaled_dot_product_attention(x, x, x, attn_mask=bias)


class Padded(Model):
    def attend(self, x, tokens):
        return F.scaled_dot_product_attention(x, x, x, attn_mask=(tokens != 0)[:, None, None, :])


class Centred(Model):
    def attend(self, x, tokens):
        return super().attend(x - x.mean(2, keepdim=True), tokens)


class Eager(Model):
    def attend(self, x, tokens):
        return torch.softmax(x @ x.transpose(-1, -2), -1) @ x


class Summed(Model):
    def attend(self, x, tokens):
        return super().attend(x, tokens) * torch.arange(x.shape[2])[:, None].square().cumsum(0)


class Relative(Model):
    def attend(self, x, tokens):
        return super().attend(x, tokens) * (torch.arange(x.shape[2]) / x.shape[2])[:, None]


class Doubled(Model):
    def attend(self, x, tokens):
        return super().attend(x, tokens) * torch.arange(0, 2 * x.shape[2], 2)[:, None]


class Reversed(Model):
    def attend(self, x, tokens):
        place = torch.arange(x.shape[2])
        return F.scaled_dot_product_attention(x, x, x, attn_mask=place[:, None] <= place)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Bidirectional, "every token sees all others"),
        (Alibi, "adds to scores, as ALiBi does"),
        (Padded, "depends on the tokens"),
        (Centred, "makes one token depend on others outside of an attention"),
        (Eager, "has no attention that is one operator"),
        (Summed, "makes one token depend on others outside of an attention"),
        (Relative, "computes with how long the sequence is"),
        (Doubled, "neither a count of them nor a mask"),
        (Reversed, "see something else than those before it"),
    ],
)
def test_what_cannot_be_served_says_why_and_where(model, message):
    with pytest.raises(TraceError, match=message) as raised:
        lower(traced(model()), cache=CACHE)
    assert raised.value.remedy
    assert model is Eager or "test_lower.py:" in raised.value.where


def test_a_training_graph_and_a_fixed_batch_are_refused():
    model = Model()
    tokens = torch.randint(VOCAB, (2, 6))
    with pytest.raises(TraceError, match="is a training step"):
        lower(ss.trace(model, (tokens,), loss=lambda out: out.sum(), optimizer=ss.SGD(lr=0.1)))
    with pytest.raises(TraceError, match="holds 2 sequences, and only so many"):
        lower(ss.trace(model, (tokens,), dynamic={"tokens": (None, "seq")}))
    with pytest.raises(TraceError, match="of which seq varies"):
        lower(ss.trace(model, (tokens,)))
