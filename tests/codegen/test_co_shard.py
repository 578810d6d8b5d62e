"""Co-shard in programs: equal to eager under every plan, and of a block one piece in memory at a time."""

from functools import cache

import pytest
import torch
from safetensors.torch import save_file

from models import llama, swin
from superscaler import compiler
from superscaler.codegen.comparison import initial_state
from superscaler.codegen.memory import peak_memory
from superscaler.codegen.virtual import run_step
from superscaler.ir.optimizers import SGD, AdamW
from superscaler.ir.trace import trace
from superscaler.model_reference import load_script
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import parse_plan
from superscaler.planner.schedules import gpipe
from tests.codegen.plans import tiny_gpt
from tests.codegen.test_emit import (
    OPTIMIZER,
    STEPS,
    assert_equal,
    eager_training,
    small_gpt,
    small_inputs,
    torchrun,
)

SWIN = {"image": 16, "window": 2, "channels": 16, "heads": (4, 8)}


@cache
def models(name):
    """A model in float64, its inputs, and its training step."""
    if name == "gpt":
        return tiny_gpt()
    torch.manual_seed(0)
    sizes = SWIN if name == "swin" else {"layers": 2, "width": 32, "kv_heads": 4, "inner": 48}
    module = {"swin": swin, "llama": llama}[name]
    model, inputs = module.build("tiny", **sizes).double(), module.example_inputs("tiny", batch=4, **sizes)
    inputs = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
    return model, inputs, trace(model, inputs, optimizer=AdamW())


@pytest.mark.parametrize("name", ["gpt", "llama", "swin"])
@pytest.mark.parametrize(
    "how",
    ["none", "tp=2", "dp=2,zero=1,recompute", "pp=2,micro_batches=2", "dp=2,tp=2,micro_batches=2,recompute"],
)
def test_the_virtual_cluster_agrees_with_eager(name, how):
    model, inputs, graph = models(name)
    cluster = Cluster.local(parse_plan(how).num_devices)
    plan = compiler.plan(graph, cluster, f"{how},co_shard=2").verify()
    assert any(operator.is_piece for operator in plan.graph.operators)
    assert plan.compare_with_eager(model, inputs).largest < 1e-11


def pieces_of_some_layers(p):
    """Heads of one layer on two devices; of the other the feed-forward part alone, along the sequence."""
    p.assign(p.everything(), p.mesh([0, 1], tp=2))
    p.trans(p.axis("heads"), "tp")
    p.co_shard(p.select("h.0.attn"), "heads", pieces=2)
    p.co_shard(p.select("h.1.mlp"), "seq", pieces=4)


def test_some_layers_along_some_axes():
    model, inputs, graph = tiny_gpt()
    plan = compiler.plan(graph, Cluster.local(2), pieces_of_some_layers).verify()
    layers = {operator.module.rpartition(".")[0] for operator in plan.graph.operators if operator.is_piece}
    assert layers == {"h.0", "h.0.attn", "h.1", "h.1.mlp"}
    assert plan.compare_with_eager(model, inputs).largest < 1e-11


class DropsHidden(torch.nn.Module):
    """A perceptron with dropout of the hidden units, which devices, micro-batches and pieces all cut."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(*sizes) for sizes in ((4, 16), (16, 4)))
        self.drop = torch.nn.Dropout(0.4)

    def forward(self, x):
        hidden = self.drop(self.layers[0](x)).reshape(len(x), 8, 2) * 2
        return self.layers[1](self.drop(hidden.tanh()).flatten(1)).square().sum()


def test_pieces_on_devices_drop_what_the_whole_drops():
    def one(p):
        p.assign(p.everything(), p.mesh([0]))

    def hidden(p):
        p.assign(p.everything(), p.mesh(range(4), dp=2, tp=2))
        p.trans(p.axis("batch"), "dp")
        p.trans(p.axis("layers.0.out"), "tp")
        p.order(gpipe(2))

    def in_pieces(p):
        hidden(p)
        p.co_shard(p.everything(), p.axis("layers.0.out"), pieces=2)

    torch.manual_seed(0)
    model, inputs = DropsHidden().double(), {"x": torch.randn(8, 4, dtype=torch.float64)}
    graph = trace(model, inputs, optimizer=AdamW())
    results = []
    for script, devices in ((one, 1), (hidden, 4), (in_pieces, 4)):
        made = compiler.plan(graph, Cluster.local(devices), script).verify()
        results.append(run_step(made.programs, initial_state(graph, model), inputs, 3))
    assert any(operator.kind == "dropout" and operator.is_piece for operator in made.graph.operators)
    for other in results[1:]:
        for name, value in results[0].state.items():
            torch.testing.assert_close(other.state[name], value, rtol=1e-12, atol=1e-14, msg=name)


class Perceptron(torch.nn.Module):
    """A layer whose hidden units are eight times as many as what enters it."""

    def __init__(self):
        super().__init__()
        self.up, self.down = torch.nn.Linear(8, 64, bias=False), torch.nn.Linear(64, 8, bias=False)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(x)))


@pytest.mark.parametrize("pieces", [2, 4, 8, 16])
def test_of_hidden_units_three_pieces_are_held(pieces):
    """By a count by hand: the units, their gradient and that of what led to them, of one piece; all in bytes."""
    rows, layers, number = 32, 4, 8
    entering, hidden, weight = rows * 8 * number, rows * 64 * number, 64 * 8 * number
    model = torch.nn.Sequential(*(Perceptron() for _ in range(layers))).double()
    example = (torch.zeros(rows, 8, dtype=torch.float64),)
    graph = trace(model, example, loss=lambda y: y.square().sum(), optimizer=SGD())
    use = peak_memory(compiler.plan(graph, Cluster.local(1), f"co_shard={pieces}").programs[0])
    assert use.moment.startswith("B0: 0/tanh_backward/piece")
    assert use.activations == entering, "what enters the first layer"
    of_weights = [
        (i + 1 + i) * weight // pieces for i in range(pieces)
    ]  # gradients of down and up until piece i
    reaching = [entering] * (pieces - 1) + [
        0
    ]  # the gradient of what left the layer, which the last piece frees
    done = 2 * (layers - 1) * weight
    assert use.temporary == 3 * hidden // pieces + done + max(
        map(sum, zip(of_weights, reaching, strict=True))
    )


@pytest.mark.ranks
@pytest.mark.parametrize("how", ["dp=2,co_shard=2", "tp=2,co_shard=2,recompute"])
def test_torchrun_trains_as_eager(how, tmp_path):
    torch.manual_seed(1)
    data = small_inputs(8 * STEPS)
    save_file(data, tmp_path / "data.safetensors")
    compiler.compile(
        small_gpt(), small_inputs(8), cluster=Cluster.local(2), plan=how, optimizer=OPTIMIZER,
        save=tmp_path / "build",
    )  # fmt: skip
    losses, weights = torchrun(tmp_path, 2)
    batches = [{name: value[8 * i : 8 * (i + 1)] for name, value in data.items()} for i in range(STEPS)]
    assert_equal(losses, weights, eager_training(batches))


def test_the_example_is_verified_and_equal_to_eager():
    model, inputs, graph = models("swin")
    plan = compiler.plan(graph, Cluster.local(2), load_script("examples/co_shard.py:co_shard"))
    assert plan.verify().compare_with_eager(model, inputs).largest < 1e-11
