"""models/gpt.py is GPT-2: published sizes, the loss of a guess at the start, logits as by hand."""

from math import log, sqrt

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import gpt

# Parameters of the checkpoints OpenAI published; ours lack one bias of `width` per layer.
PUBLISHED = {"small": 124_439_808, "medium": 354_823_168, "large": 774_030_080, "xl": 1_557_611_200}


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("size", PUBLISHED)
def test_sizes_of_gpt2_are_the_published_ones_less_the_biases_of_k(size):
    row = gpt.SIZES[size]
    with torch.device("meta"):
        model = gpt.build(size)
    assert count(model) == PUBLISHED[size] - row["layers"] * row["width"]


@pytest.mark.parametrize("size", gpt.SIZES)
def test_every_size_builds_with_the_parameters_of_the_formula(size):
    row = gpt.SIZES[size]
    width, layers = row["width"], row["layers"]
    with torch.device("meta"):
        model = gpt.build(size)
        inputs = gpt.example_inputs(size, batch=2)
    block = 12 * width * width + (4 + 3 + 5) * width  # matrices; normalisations, attention, perceptron
    assert count(model) == layers * block + (row["vocab"] + row["seq"] + 2) * width
    assert {name: tuple(tensor.shape) for name, tensor in inputs.items()} == {
        "tokens": (2, row["seq"]),
        "targets": (2, row["seq"]),
    }


def test_gpt3_175b_has_175_billion_parameters():
    with torch.device("meta"):
        assert round(count(gpt.build("gpt3-175b")) / 1e9) == 175


def test_module_paths_read_well():
    names = dict(gpt.build("tiny").named_parameters())
    assert {"wte.weight", "wpe.weight", "h.0.attn.q.weight", "h.3.mlp.down.bias", "ln_f.weight"} <= set(names)
    assert "h.0.attn.k.bias" not in names


def test_loss_at_the_start_is_that_of_a_guess():
    torch.manual_seed(0)
    loss = gpt.build("tiny")(**gpt.example_inputs("tiny", batch=8))
    assert loss.item() == pytest.approx(log(256), abs=0.1)


def test_projections_onto_the_residual_stream_start_smaller():
    torch.manual_seed(0)
    model = gpt.build("tiny", layers=8)
    assert model.h[0].mlp.up.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.h[0].mlp.down.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert model.h[0].attn.proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)


def logits_by_hand(model, tokens):
    """The same network in plain arithmetic, softmax written out."""
    seq = tokens.shape[1]
    future = torch.ones(seq, seq).triu(1).bool()
    x = model.wte.weight[tokens] + model.wpe.weight[:seq]
    for block in model.h:
        attention, heads = block.attn, block.attn.heads
        y = F.layer_norm(x, x.shape[-1:], block.ln_1.weight, block.ln_1.bias)
        q, k, v = (
            torch.stack(
                (y @ linear.weight.T + (0 if linear.bias is None else linear.bias)).chunk(heads, -1), 1
            )
            for linear in (attention.q, attention.k, attention.v)
        )
        scores = (q @ k.mT / sqrt(q.shape[-1])).masked_fill(future, float("-inf"))
        y = torch.cat((scores.softmax(-1) @ v).unbind(1), -1)
        x = x + y @ attention.proj.weight.T + attention.proj.bias
        y = F.layer_norm(x, x.shape[-1:], block.ln_2.weight, block.ln_2.bias)
        y = nn.GELU("tanh")(y @ block.mlp.up.weight.T + block.mlp.up.bias)
        x = x + y @ block.mlp.down.weight.T + block.mlp.down.bias
    return F.layer_norm(x, x.shape[-1:], model.ln_f.weight, model.ln_f.bias) @ model.wte.weight.T


def test_logits_and_loss_are_those_computed_by_hand():
    torch.manual_seed(0)
    model = gpt.build("tiny").double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    inputs = gpt.example_inputs("tiny", batch=3)
    expected = logits_by_hand(model, inputs["tokens"])
    torch.testing.assert_close(model(inputs["tokens"]), expected)
    chosen = expected.log_softmax(-1).gather(-1, inputs["targets"][..., None])
    torch.testing.assert_close(model(**inputs), -chosen.mean())


def test_dropout_is_off_by_default_and_can_be_asked_for():
    tokens = gpt.example_inputs("tiny", batch=1)["tokens"]
    plain, dropping = gpt.build("tiny"), gpt.build("tiny", dropout=0.5)
    assert torch.equal(plain(tokens), plain(tokens))
    assert not torch.equal(dropping(tokens), dropping(tokens))


def test_an_unknown_size_is_refused_with_the_list():
    with pytest.raises(ValueError, match=r"no size 'huge'.*gpt3-175b"):
        gpt.build("huge")


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="not a multiple"):
        gpt.build("tiny", heads=3)
