"""models/moe.py is Mixtral: the published size, the logits of transformers' MixtralForCausalLM, rooms of experts."""

from math import log

import pytest
import torch
from torch import nn

from models import moe


def test_mixtral_has_the_published_size():
    with torch.device("meta"):
        model = moe.build("mixtral-8x7b")
    published = 46_702_792_704  # huggingface.co/mistralai/Mixtral-8x7B-v0.1
    assert sum(parameter.numel() for parameter in model.parameters()) == published
    assert model.layers[0].experts.up.shape == (8, 4096, 14336)


def theirs(transformers, model, row):
    """MixtralForCausalLM with the weights of `model`."""
    config = transformers.MixtralConfig(
        vocab_size=row["vocab"],
        hidden_size=row["width"],
        intermediate_size=row["inner"],
        num_hidden_layers=row["layers"],
        num_attention_heads=row["heads"],
        num_key_value_heads=row["kv_heads"],
        num_local_experts=row["experts"],
        num_experts_per_tok=row["choices"],
        router_aux_loss_coef=0.02,
        output_router_logits=True,
        experts_implementation="eager",
    )
    reference = transformers.MixtralForCausalLM(config).double()
    weights = {
        "model.embed_tokens.weight": model.embed.weight,
        "model.norm.weight": model.norm.weight,
        "lm_head.weight": model.head.weight,
    }
    for number, block in enumerate(model.layers):
        layer = f"model.layers.{number}"
        gates = torch.cat((block.experts.gate, block.experts.up), -1)
        weights |= {
            f"{layer}.input_layernorm.weight": block.norm_1.weight,
            f"{layer}.post_attention_layernorm.weight": block.norm_2.weight,
            f"{layer}.self_attn.q_proj.weight": block.attn.q.weight,
            f"{layer}.self_attn.k_proj.weight": block.attn.k.weight,
            f"{layer}.self_attn.v_proj.weight": block.attn.v.weight,
            f"{layer}.self_attn.o_proj.weight": block.attn.proj.weight,
            f"{layer}.mlp.gate.weight": block.router.gate.weight,
            f"{layer}.mlp.experts.gate_up_proj": gates.mT,
            f"{layer}.mlp.experts.down_proj": block.experts.down.mT,
        }
    reference.load_state_dict(weights)
    return reference


def sample(**changed):
    torch.manual_seed(0)
    model = moe.build("tiny", **changed).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model, {**moe.SIZES["tiny"], **changed}


@pytest.mark.parametrize("choices", [1, 2, 3])
def test_with_room_for_all_logits_are_those_of_transformers(transformers, choices):
    model, row = sample(choices=choices, room=4 / choices)
    tokens = moe.example_inputs("tiny", batch=3)["tokens"]
    expected = theirs(transformers, model, row)(tokens).logits
    torch.testing.assert_close(model(tokens), expected, rtol=1e-10, atol=1e-10)


def test_loss_and_gradients_are_those_of_transformers_for_one_sequence_and_layer(transformers):
    model, row = sample(layers=1, room=2.0)
    reference = theirs(transformers, model, row)
    inputs = moe.example_inputs("tiny", batch=1)
    # transformers shifts labels by one: the target of the first position is no label there
    labels = torch.cat((torch.tensor([[-100]]), inputs["targets"][:, :-1]), 1)
    inputs["targets"][:, -1] = -100
    expected = reference(inputs["tokens"], labels=labels).loss
    loss = model(**inputs)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    loss.backward()
    expected.backward()
    gate = reference.model.layers[0].mlp.gate.weight.grad
    torch.testing.assert_close(model.layers[0].router.gate.weight.grad, gate, rtol=1e-8, atol=1e-12)


def test_what_is_beyond_the_room_of_an_expert_passes_it_by():
    torch.manual_seed(0)
    router = moe.Router(8, experts=2, choices=1, room=1.0).double()
    nn.init.normal_(router.gate.weight)
    toward = torch.linalg.lstsq(
        router.gate.weight, torch.eye(2).double()
    ).solution  # columns choose an expert
    x = toward.T[[0, 0, 0, 1]].unsqueeze(0)
    places, weights, _ = router(x)
    assert places.shape == (1, 4, 2, 2)
    kept = [tuple(index) for index in places[0].nonzero().tolist()]
    assert kept == [(0, 0, 0), (1, 0, 1), (3, 1, 0)], "the third token finds its expert full"
    assert torch.equal(weights, places)


def test_sequences_do_not_depend_on_each_other():
    model, _ = sample(room=1.0)
    tokens = moe.example_inputs("tiny", batch=4)["tokens"]
    apart = torch.cat([model(row) for row in tokens.split(1)])
    torch.testing.assert_close(model(tokens), apart)


def test_equal_use_has_the_smallest_loss_of_balance():
    torch.manual_seed(0)
    router = moe.Router(8, experts=4, choices=2, room=2.0).double()
    nn.init.zeros_(router.gate.weight)
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    assert router(x)[2].tolist() == pytest.approx([2.0, 2.0])
    nn.init.normal_(router.gate.weight, std=10)
    assert (router(x.abs())[2] > 2.0).all()


def test_loss_at_the_start_is_that_of_a_guess():
    torch.manual_seed(0)
    model = moe.build("tiny", balance=0.0)
    assert model(**moe.example_inputs("tiny")).item() == pytest.approx(log(64), abs=0.1)


def test_choices_and_heads_must_fit():
    with pytest.raises(ValueError, match="choose 5 of 4"):
        moe.build("tiny", choices=5)
    with pytest.raises(ValueError, match="do not divide"):
        moe.build("tiny", heads=5)


def test_an_unknown_size_is_refused_with_the_list():
    with pytest.raises(ValueError, match=r"no size 'huge'.*mixtral-8x7b"):
        moe.build("huge")
