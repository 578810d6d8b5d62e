"""models/mbart.py is mBART: the published size, the logits of transformers' MBartForConditionalGeneration."""

from math import log

import pytest
import torch
from torch import nn

from models import mbart


def count(size):
    with torch.device("meta"):
        model = mbart.build(size)
    assert not [name for name in model.state_dict() if name.endswith("k.bias")]
    return sum(parameter.numel() for parameter in model.parameters())


def test_large_is_mbart_50_less_the_biases_of_k():
    published = 610_879_488  # huggingface.co/facebook/mbart-large-50
    attentions = 12 + 2 * 12
    assert count("large") == published - attentions * 1024


def test_half_a_million_words_are_most_of_the_model():
    assert count("mbart-500k") - count("large") == (500_000 - 250_054) * 1024
    assert count("mbart-500k") / 2 < 500_000 * 1024


def theirs(transformers, model, row):
    """MBartForConditionalGeneration with the weights of `model`, and zero biases of k."""
    config = transformers.MBartConfig(
        vocab_size=row["vocab"],
        d_model=row["width"],
        encoder_layers=row["layers"],
        decoder_layers=row["layers"],
        encoder_attention_heads=row["heads"],
        decoder_attention_heads=row["heads"],
        encoder_ffn_dim=row["inner"],
        decoder_ffn_dim=row["inner"],
        max_position_embeddings=row["seq"],
        dropout=0.0,
        scale_embedding=True,
        pad_token_id=None,
    )
    reference = transformers.MBartForConditionalGeneration(config).double()
    names = {
        "positions.table": "embed_positions", "norm_in": "layernorm_embedding", "norm_out": "layer_norm",
        "norm_1": "self_attn_layer_norm", "attn.": "self_attn.", "mlp.up": "fc1", "mlp.down": "fc2",
        ".q.": ".q_proj.", ".k.": ".k_proj.", ".v.": ".v_proj.", ".proj.": ".out_proj.", "cross.": "encoder_attn.",
    }  # fmt: skip
    weights = {}
    for name, value in model.state_dict().items():
        last = "norm_3" if name.startswith("decoder") else "norm_2"
        theirs = name.replace(last, "final_layer_norm").replace("norm_2", "encoder_attn_layer_norm")
        for ours, word in names.items():
            theirs = theirs.replace(ours, word)
        weights[f"model.{theirs}"] = value
        if theirs.endswith("k_proj.weight"):
            weights[f"model.{theirs.removesuffix('weight')}bias"] = torch.zeros(row["width"])
    weights |= {f"model.{side}.embed_tokens.weight": model.shared.weight for side in ("encoder", "decoder")}
    weights |= {"lm_head.weight": model.shared.weight, "final_logits_bias": torch.zeros(1, row["vocab"])}
    reference.load_state_dict(weights)
    return reference.eval()


def test_logits_loss_and_gradients_are_those_of_transformers(transformers):
    torch.manual_seed(0)
    model = mbart.build("tiny").double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    reference = theirs(transformers, model, mbart.SIZES["tiny"])
    inputs = mbart.example_inputs("tiny", batch=3)
    out = reference(inputs["source"], decoder_input_ids=inputs["shifted"], labels=inputs["targets"])
    logits = model(inputs["source"], inputs["shifted"])
    torch.testing.assert_close(logits, out.logits, rtol=1e-10, atol=1e-10)
    loss = model(**inputs)
    torch.testing.assert_close(loss, out.loss, rtol=1e-12, atol=0)
    loss.backward()
    out.loss.backward()
    ours, expected = model.shared.weight.grad, reference.model.shared.weight.grad
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


def test_the_decoder_starts_from_the_last_target():
    inputs = mbart.example_inputs("tiny", batch=2)
    assert torch.equal(inputs["shifted"][:, 1:], inputs["targets"][:, :-1])
    assert torch.equal(inputs["shifted"][:, 0], inputs["targets"][:, -1])


def test_loss_at_the_start_is_that_of_a_guess():
    torch.manual_seed(0)
    assert mbart.build("tiny")(**mbart.example_inputs("tiny")).item() == pytest.approx(log(96), abs=0.1)


def test_dropout_is_off_by_default_and_can_be_asked_for():
    inputs = mbart.example_inputs("tiny", batch=1)
    plain, dropping = mbart.build("tiny"), mbart.build("tiny", dropout=0.5)
    assert torch.equal(plain(**inputs), plain(**inputs))
    assert not torch.equal(dropping(**inputs), dropping(**inputs))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="not a multiple"):
        mbart.build("tiny", heads=3)


def test_an_unknown_size_is_refused_with_the_list():
    with pytest.raises(ValueError, match=r"no size 'huge'.*mbart-500k"):
        mbart.build("huge")
