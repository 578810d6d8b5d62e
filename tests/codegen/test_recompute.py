"""Recomputation in programs: less memory, by a count by hand; the same numbers bit for bit; source that says so."""

import pytest
import torch
from safetensors.torch import save_file

from models import gpt
from superscaler import compiler
from superscaler.codegen.memory import free_values, peak_memory
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import parse_plan
from superscaler.runtime.loaded import load
from tests.codegen.plans import SIZES, planned, programs_of, tiny_gpt
from tests.codegen.test_emit import OPTIMIZER, STEPS, small_gpt, small_inputs, torchrun


def fullest(how):
    (program,) = map(free_values, programs_of(planned(tiny_gpt(layers=8)[2], how)))
    return peak_memory(program)


def test_only_the_inputs_of_layers_are_stored():
    """All in bytes; of four micro-batches of 16 tokens two wait whole while one is in its backward.

    Each keeps its token positions for the gradient of their table.
    """
    tokens, layers, number = 16, 8, 8
    of_width, vector = tokens * SIZES["width"] * number, tokens * number
    fed = 3 * 8 * SIZES["seq"] * number  # tokens, targets, and the targets whole, to count them beforehand
    head = 2 * of_width + 2 * vector + SIZES["vocab"] * vector + vector + tokens
    """What enters ln_f, what leaves it, its mean and deviation; logits, log-sum-exp and mask of the loss."""
    positions = SIZES["seq"] * number
    waiting = positions + layers * of_width + head

    stored = fullest("schedule=gpipe,micro_batches=4,recompute")
    assert stored.moment.startswith("B1: h.7.mlp.down/linear_weight_gradient")
    assert stored.activations == fed + 2 * waiting + positions + layers * of_width

    # Two layer norms, q, k, v, attention as it is and as its projection reads it, the sum; up and gelu.
    inside = 8 * of_width + 2 * 4 * of_width + (4 + SIZES["heads"]) * vector
    without = fullest("schedule=gpipe,micro_batches=4")
    assert without.moment.startswith("B0: h.7.mlp/gelu_backward")
    in_backward = layers * (of_width + inside) - 4 * of_width  # the last gelu's result is free already
    assert without.activations == fed + 3 * (waiting + layers * inside) + positions + in_backward
    assert without.activations > 17 * stored.activations

    # Where nothing asks for another schedule a micro-batch's backward follows its forward, and none waits.
    assert fullest("micro_batches=4,recompute").activations == fed + positions + layers * of_width


@pytest.mark.parametrize("how", ["none", "micro_batches=4"])
def test_a_device_trains_bit_for_bit_alike_with_dropout(how, tmp_path):
    batches = [small_inputs(8) for _ in range(STEPS)]
    results = []
    for plan in (how, f"{how},recompute"):
        compiler.compile(
            small_gpt(dropout=0.2), batches[0], cluster=Cluster.local(1), plan=plan, optimizer=OPTIMIZER,
            save=tmp_path / "build",
        ).verify()  # fmt: skip
        program = load(tmp_path / "build", "cpu")
        results.append(([program(batch).item() for batch in batches], program.weights))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(results[0][1][name], value) for name, value in results[1][1].items())


@pytest.mark.ranks
@pytest.mark.parametrize("how", ["tp=2,pp=2,micro_batches=2", "tp=2,sp"])
def test_torchrun_trains_bit_for_bit_alike_with_dropout(how, tmp_path):
    save_file(small_inputs(8 * STEPS), tmp_path / "data.safetensors")
    results = []
    for plan in (how, f"{how},recompute"):
        compiler.compile(
            small_gpt(dropout=0.2), small_inputs(8), cluster=Cluster.local(parse_plan(how).num_devices),
            plan=plan, optimizer=OPTIMIZER, save=tmp_path / "build",
        )  # fmt: skip
        results.append(torchrun(tmp_path, parse_plan(how).num_devices))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(results[0][1][name], value) for name, value in results[1][1].items())


def test_the_virtual_cluster_agrees_with_eager():
    model, inputs, graph = tiny_gpt()
    plan = compiler.plan(graph, Cluster.local(8), "dp=2,tp=2,pp=2,micro_batches=2,recompute").verify()
    assert plan.compare_with_eager(model, inputs).largest < 1e-11


class Sine(torch.autograd.Function):
    """Its forward computes what the backward alone reads."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(torch.cos(x))
        return torch.sin(x)

    @staticmethod
    def backward(ctx, d_y):
        return d_y * ctx.saved_tensors[0]


def test_what_the_backward_alone_reads_moves_there(tmp_path):
    class Layer(torch.nn.Linear):
        def forward(self, x):
            return x + Sine.apply(super().forward(x))

    torch.manual_seed(0)
    model = torch.nn.Sequential(Layer(4, 4), Layer(4, 4)).double()
    inputs = (torch.randn(8, 4, dtype=torch.float64),)
    plan = compiler.compile(
        model, inputs, cluster=Cluster.local(2), plan="dp=2,recompute", optimizer=OPTIMIZER,
        loss=lambda y: y.square().mean(), save=tmp_path / "b",
    )  # fmt: skip
    cosines = [operator for operator in plan.graph.operators if operator.kind == "aten.cos"]
    assert [operator.is_again for operator in cosines] == [True, True]
    assert plan.compare_with_eager(model, inputs, loss=lambda y: y.square().mean()).largest < 1e-12


def test_the_source_says_where_the_forward_runs_again(tmp_path):
    compiler.compile(
        gpt.build("tiny"), gpt.example_inputs("tiny"), cluster=Cluster.local(2), plan="tp=2,recompute",
        optimizer=OPTIMIZER, save=tmp_path / "b",
    )  # fmt: skip
    source = (tmp_path / "b" / "stage0.py").read_text()
    backward = source[source.index("def block_backward") : source.index("def backward")]
    assert '"""Backward of `h.*`, which runs its forward again."""' in backward
    again = backward[backward.index("# forward again") : backward.index("# backward\n")]
    assert "attn, attn_lse = ops.attention(q, k, v, causal=True" in again
    assert again.count("rt.all_reduce(") == 1  # that of the attention; nobody needs that of the mlp
    assert "for layer in reversed(range(4)):" in source
    assert source.count("ops.attention(") == 2
