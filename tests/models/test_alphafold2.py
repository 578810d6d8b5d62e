"""models/alphafold2.py is the Evoformer: each part as the algorithms of the supplement say, index by index."""

from math import log, sqrt

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import alphafold2

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def filled(module):
    """The module in double precision, its parameters far from their start."""
    torch.manual_seed(0)
    module = module.double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def linear(layer, x):
    return x @ layer.weight.T + (0 if layer.bias is None else layer.bias)


def norm(layer, x):
    centred = x - x.mean(-1, keepdim=True)
    y = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight
    return y if layer.bias is None else y + layer.bias


def attend(module, q_place, seen, x, bias=0.0):
    """What one place takes from the places `seen`, over all heads: lines 2 to 8 of algorithm 7."""
    width = module.q.out_features // module.heads
    taken = []
    for head in range(module.heads):
        part = slice(head * width, (head + 1) * width)
        q = linear(module.q, x[q_place])[part]
        k, v = (
            torch.stack([linear(layer, x[place])[part] for place in seen]) for layer in (module.k, module.v)
        )
        scores = k @ q / sqrt(width) + (bias if isinstance(bias, float) else bias[:, head])
        gate = torch.sigmoid(linear(module.gate, x[q_place])[part])
        taken.append(gate * (torch.softmax(scores, 0) @ v))
    return linear(module.out, torch.cat(taken))


def test_row_attention_is_algorithm_7():
    module = filled(alphafold2.RowAttention(6, 5, 2, 3))
    m, z = random(1, 3, 4, 6), random(1, 4, 4, 5)
    update = module(m, z)[0]
    x, bias = norm(module.norm_msa, m[0]), linear(module.bias, norm(module.norm_pair, z[0]))
    for s in range(3):
        for i in range(4):
            expected = attend(module.attend, (s, i), [(s, j) for j in range(4)], x, bias[i])
            torch.testing.assert_close(update[s, i], expected, **EXACT)


def test_column_attention_is_algorithm_8():
    module = filled(alphafold2.ColumnAttention(6, 2, 3))
    m = random(1, 3, 4, 6)
    update, x = module(m)[0], norm(module.norm, m[0])
    for s in range(3):
        for i in range(4):
            expected = attend(module.attend, (s, i), [(t, i) for t in range(3)], x)
            torch.testing.assert_close(update[s, i], expected, **EXACT)


def test_transition_is_algorithm_9():
    module = filled(alphafold2.Transition(6))
    x = random(2, 3, 4, 6)
    expected = linear(module.down, linear(module.up, norm(module.norm, x)).clamp(min=0))
    torch.testing.assert_close(module(x), expected, **EXACT)
    assert module.up.out_features == 24


def test_outer_product_mean_is_algorithm_10():
    module = filled(alphafold2.OuterProductMean(6, 5, 3))
    m = random(1, 3, 4, 6)
    update, x = module(m)[0], norm(module.norm, m[0])
    for i in range(4):
        for j in range(4):
            products = [
                torch.outer(linear(module.left, x[s, i]), linear(module.right, x[s, j])) for s in range(3)
            ]
            expected = linear(module.out, sum(products).flatten() / 3)
            torch.testing.assert_close(update[i, j], expected, **EXACT)


@pytest.mark.parametrize("outgoing", [True, False])
def test_triangle_multiplication_is_algorithms_11_and_12(outgoing):
    module = filled(alphafold2.TriangleMultiplication(5, 3, outgoing))
    z = random(1, 4, 4, 5)
    update, x = module(z)[0], norm(module.norm, z[0])
    a = torch.sigmoid(linear(module.left_gate, x)) * linear(module.left, x)
    b = torch.sigmoid(linear(module.right_gate, x)) * linear(module.right, x)
    for i in range(4):
        for j in range(4):
            total = sum(a[i, k] * b[j, k] if outgoing else a[k, i] * b[k, j] for k in range(4))
            gate = torch.sigmoid(linear(module.gate, x[i, j]))
            expected = gate * linear(module.out, norm(module.norm_out, total))
            torch.testing.assert_close(update[i, j], expected, **EXACT)


@pytest.mark.parametrize("starting", [True, False])
def test_triangle_attention_is_algorithm_13_and_turned_14(starting):
    module = filled(alphafold2.TriangleAttention(5, 2, 3))
    z = random(1, 4, 4, 5)
    update = module(z)[0] if starting else module(z.transpose(1, 2)).transpose(1, 2)[0]
    x = norm(module.norm, z[0])
    bias = linear(module.bias, x)
    for i in range(4):
        for j in range(4):
            if starting:
                seen, added = [(i, k) for k in range(4)], torch.stack([bias[j, k] for k in range(4)])
            else:
                seen, added = [(k, j) for k in range(4)], torch.stack([bias[k, i] for k in range(4)])
            torch.testing.assert_close(update[i, j], attend(module.attend, (i, j), seen, x, added), **EXACT)


def test_a_block_is_algorithm_6():
    block = filled(alphafold2.Block(6, 5, 2, 1, 3, 2, 4, dropout=0.0))
    m, z = random(2, 3, 4, 6), random(2, 4, 4, 5)
    updated = block(m, z)
    m = m + block.row(m, z)
    m = m + block.column(m)
    m = m + block.msa_transition(m)
    z = z + block.outer(m)
    for part in (block.triangle_out, block.triangle_in, block.triangle_start):
        z = z + part(z)
    z = z + block.triangle_end(z.transpose(1, 2)).transpose(1, 2)
    z = z + block.pair_transition(z)
    torch.testing.assert_close(updated, (m, z), **EXACT)


def test_inputs_are_embedded_as_algorithms_3_and_4():
    embedding = filled(alphafold2.InputEmbedding(6, 5))
    target, msa = random(1, 70, 22), random(1, 3, 70, 49)
    m, z = embedding(target, msa)
    for i, j in ((0, 0), (2, 1), (0, 69), (69, 0), (33, 1), (34, 1)):
        one_hot = F.one_hot(torch.tensor(max(-32, min(32, i - j)) + 32), 65).double()
        expected = linear(embedding.left, target[0, i]) + linear(embedding.right, target[0, j])
        torch.testing.assert_close(z[0, i, j], expected + one_hot @ embedding.distance.weight, **EXACT)
    expected = linear(embedding.msa, msa[0, 2, 7]) + linear(embedding.target, target[0, 7])
    torch.testing.assert_close(m[0, 2, 7], expected, **EXACT)


def test_recycling_adds_what_the_pass_before_found_and_keeps_no_gradient():
    model = filled(alphafold2.build("tiny", recycles=2))
    inputs = {
        k: v.double() if v.is_floating_point() else v for k, v in alphafold2.example_inputs(batch=2).items()
    }
    m, z = model.embed(inputs["target"], inputs["msa"])
    first, pairs = torch.zeros_like(m[:, 0]), torch.zeros_like(z)
    for _ in range(3):
        first, pairs = first.detach(), pairs.detach()
        start = m.clone()
        start[:, 0] += norm(model.recycle.norm_msa, first)
        state = start, z + norm(model.recycle.norm_pair, pairs)
        for block in model.blocks:
            state = block(*state)
        first, pairs = state[0][:, 0], state[1]
    residues = linear(model.residue_head, state[0])
    distances = linear(model.distance_head, state[1])
    distances = distances + distances.transpose(1, 2)
    torch.testing.assert_close(model(inputs["target"], inputs["msa"]), (residues, distances), **EXACT)
    masked = inputs["residue_targets"] != -100
    picked = residues.log_softmax(-1)[masked].gather(-1, inputs["residue_targets"][masked][:, None])
    near = distances.log_softmax(-1).gather(-1, inputs["distance_targets"][..., None])
    expected = -2.0 * picked.mean() - 0.3 * near.mean()
    loss = model(**inputs)
    torch.testing.assert_close(loss, expected, **EXACT)
    weight = model.blocks[0].row.attend.q.weight
    gradients = [torch.autograd.grad(value, weight)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients, **EXACT)


def test_the_evoformer_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = alphafold2.build("initial")
    count = sum(parameter.numel() for parameter in model.parameters())
    # SuperScaler (arXiv 2301.08984) trains an AlphaFold2 of 87 million; the whole of AlphaFold 2, with the
    # structure module and the stacks left out here, has 93 million.
    assert 87e6 < count < 88e6
    per_block = sum(parameter.numel() for parameter in model.blocks[0].parameters())
    m, z, c = 256, 128, 128
    attention = 5 * m * m + 2 * m
    triangle = 4 * (z * c + c) + 2 * (z * z + z) + 2 * z + 2 * c
    pair_attention = 5 * z * z + 2 * z + 4 * z + 2 * z
    assert per_block == (
        2 * attention + 2 * 2 * m + z + 8 * z  # rows and columns; the bias of pairs
        + 8 * m * m + 5 * m + 2 * m + 8 * z * z + 5 * z + 2 * z  # transitions
        + 2 * (m * 32 + 32) + 32 * 32 * z + z + 2 * m  # outer product
        + 2 * triangle + 2 * pair_attention
    )  # fmt: skip


def test_dropout_drops_the_same_all_along_a_dim():
    torch.manual_seed(0)
    dropped = alphafold2.SharedDropout(0.5, dim=1)(torch.ones(2, 5, 6, 7))
    assert torch.equal(dropped, dropped[:, :1].expand(2, 5, 6, 7))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    inputs = alphafold2.example_inputs(batch=1)
    model = filled(alphafold2.build("tiny", dropout=0.5)).float()
    assert not torch.equal(model(**inputs), model(**inputs))


def test_loss_at_the_start_is_that_of_a_guess():
    torch.manual_seed(0)
    model = alphafold2.build("tiny")
    for head in (model.residue_head, model.distance_head):
        nn.init.zeros_(head.weight)
    loss = model(**alphafold2.example_inputs("tiny", batch=4))
    assert loss.item() == pytest.approx(2.0 * log(23) + 0.3 * log(8), rel=1e-5)


def test_an_unknown_size_is_refused_with_the_list():
    with pytest.raises(ValueError, match=r"no size 'huge'.*finetune"):
        alphafold2.build("huge")
