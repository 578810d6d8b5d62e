"""models/llama.py is Llama: published sizes, the logits of transformers' LlamaForCausalLM, rotary positions."""

from math import log

import pytest
import torch
from torch import nn

from models import llama

# Parameters of the published checkpoints, as the index files of their weights add up (huggingface.co/meta-llama).
PUBLISHED = {
    "7b": 6_738_415_616,
    "13b": 13_015_864_320,
    "70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
}


@pytest.mark.parametrize("size", PUBLISHED)
def test_sizes_are_the_published_ones(size):
    with torch.device("meta"):
        model = llama.build(size)
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[size]


def theirs(transformers, model, row):
    """LlamaForCausalLM with the weights of `model`."""
    config = transformers.LlamaConfig(
        vocab_size=row["vocab"],
        hidden_size=row["width"],
        intermediate_size=row["inner"],
        num_hidden_layers=row["layers"],
        num_attention_heads=row["heads"],
        num_key_value_heads=row["kv_heads"],
        rms_norm_eps=1e-5,
    )
    reference = transformers.LlamaForCausalLM(config).double()
    names = {
        "embed": "model.embed_tokens", "layers": "model.layers", "norm_1": "input_layernorm", "attn": "self_attn",
        "q": "q_proj", "k": "k_proj", "v": "v_proj", "proj": "o_proj", "norm_2": "post_attention_layernorm",
        "gate": "gate_proj", "up": "up_proj", "down": "down_proj", "head": "lm_head",
    }  # fmt: skip
    weights = {}
    for name, value in model.state_dict().items():
        theirs = ".".join(names.get(part, part) for part in name.split("."))
        weights["model.norm.weight" if name == "norm.weight" else theirs] = value
    reference.load_state_dict(weights)
    return reference


@pytest.mark.parametrize("kv_heads", [1, 4, 8])
def test_logits_loss_and_gradients_are_those_of_transformers(transformers, kv_heads):
    torch.manual_seed(0)
    row = {**llama.SIZES["tiny"], "kv_heads": kv_heads}
    model = llama.build("tiny", kv_heads=kv_heads).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    reference = theirs(transformers, model, row)
    inputs = llama.example_inputs("tiny", batch=3)
    logits = reference(inputs["tokens"]).logits
    torch.testing.assert_close(model(inputs["tokens"]), logits, rtol=1e-10, atol=1e-10)
    nn.functional.cross_entropy(logits.flatten(0, 1), inputs["targets"].flatten()).backward()
    model(**inputs).backward()
    expected = reference.model.layers[0].self_attn.k_proj.weight.grad
    torch.testing.assert_close(model.layers[0].attn.k.weight.grad, expected, rtol=1e-9, atol=1e-12)


def test_scores_depend_on_distances_alone():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    table = llama.rotary_table(20, 8, 10000.0, like=q)
    q, k = (llama.rotate(x.expand(1, 1, 20, 8), *table)[0, 0] for x in (q, k))
    scores = q @ k.T
    torch.testing.assert_close(scores[3:, 3:], scores[:-3, :-3])
    assert not torch.allclose(scores[0, 0], scores[0, 1])


def test_loss_at_the_start_is_that_of_a_guess():
    torch.manual_seed(0)
    loss = llama.build("tiny")(**llama.example_inputs("tiny", batch=8))
    assert loss.item() == pytest.approx(log(256), abs=0.1)


def test_normalisation_of_half_precision_is_done_in_single():
    torch.manual_seed(0)
    x = torch.randn(4, 64).bfloat16()
    exact = x.double() / x.double().square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(llama.RMSNorm(64, 0.0).bfloat16()(x), exact.bfloat16(), rtol=0, atol=0)


def test_heads_must_divide():
    with pytest.raises(ValueError, match="kv_heads 3 do not divide"):
        llama.build("tiny", kv_heads=3)


def test_an_unknown_size_is_refused_with_the_list():
    with pytest.raises(ValueError, match=r"no size 'huge'.*llama3-70b"):
        llama.build("huge")
