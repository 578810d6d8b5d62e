"""Programs that go through `torch.compile` train as eager PyTorch does, and compile a layer once for all."""

import pytest
import torch
from torch._dynamo import lookup_backend

from models import gpt
from superscaler import compiler
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import parse_plan
from superscaler.runtime.compiled import compile_program
from superscaler.runtime.loaded import load
from tests.runtime.ranks import run_ranks
from tests.runtime.test_loaded import OPTIMIZER, assert_trained_as_eager, batches, compiled


def counting(graphs):
    """A backend that collects what it compiles, for eager kernels."""

    def backend(graph, inputs):
        graphs.append(graph)
        return lookup_backend("aot_eager")(graph, inputs)

    return backend


def train_compiled(rank, folder):
    """Losses, the weights, and how many graphs were compiled up to each step."""
    step, graphs = load(folder, timeout=120), []
    compile_program(step._module, step._runtime, counting(graphs))
    losses, counts = [], []
    for batch in batches():
        losses.append(step(batch).item())
        counts.append(len(graphs))
    return losses, step.state_dict(), counts


PLANS = [
    "none",
    "micro_batches=2",
    "recompute=layers",
    "dp=2",
    "dp=2,zero=1,micro_batches=2",
    "dp=2,zero=2,micro_batches=2,recompute=selective",
    "dp=2,zero=3,micro_batches=2",
    "tp=2,sp",
    "cp=2",
    "co_shard=2,dp=2",
    "dp=2,offload=activations",
    "dp=2,offload=parameters",
    "pp=2,micro_batches=2",  # a layer per stage, which has no function of its own
    "dp=2,zero=3,pp=2,micro_batches=2",
]


@pytest.mark.ranks
@pytest.mark.parametrize("plan", PLANS)
def test_compiled_programs_train_as_eager_and_compile_nothing_later(plan, tmp_path):
    folder = compiled(tmp_path / "build", plan, optimizer=OPTIMIZER)
    ranks = parse_plan(plan).num_devices
    for losses, weights, counts in run_ranks(train_compiled, ranks, tmp_path, folder):
        assert_trained_as_eager(losses, weights)
        assert 0 < counts[0] == counts[-1]


def test_more_layers_compile_no_more(tmp_path):
    sizes = {"width": 16, "heads": 4, "seq": 8, "vocab": 32}
    counts = []
    for layers in (2, 5):
        model = gpt.build("tiny", layers=layers, **sizes)
        batch = gpt.example_inputs("tiny", batch=4, layers=layers, **sizes)
        compiler.compile(
            model, batch, cluster=Cluster.local(1), save=tmp_path / str(layers), optimizer=OPTIMIZER
        )
        step, graphs = load(tmp_path / str(layers)), []
        compile_program(step._module, step._runtime, counting(graphs))
        step(batch)
        counts.append(len(graphs))
    assert counts[0] == counts[1] == 2


@pytest.mark.ranks
def test_dropout_drops_what_it_drops_uncompiled(tmp_path):
    sizes = {"layers": 2, "width": 16, "heads": 4, "seq": 8, "vocab": 32}
    torch.manual_seed(0)
    model = gpt.build("tiny", dropout=0.2, **sizes).double()
    batch = gpt.example_inputs("tiny", batch=4, **sizes)
    compiler.compile(model, batch, cluster=Cluster.local(1), save=tmp_path, optimizer=OPTIMIZER)
    losses = {}
    for is_compiled in (False, True):
        step, graphs = load(tmp_path), []
        if is_compiled:
            compile_program(step._module, step._runtime, counting(graphs))
        losses[is_compiled] = [step(batch).item() for _ in range(2)]
        known = len(graphs)  # the second step has taught that its number changes
        losses[is_compiled] += [step(batch).item() for _ in range(4)]
        assert len(graphs) == known
    assert losses[True] == pytest.approx(losses[False], rel=1e-12)


FLOAT8_SIZES = {"layers": 2, "width": 64, "heads": 4, "seq": 16, "vocab": 96}


def float8_build(folder):
    torch.manual_seed(0)
    model = gpt.build("tiny", **FLOAT8_SIZES)
    batch = gpt.example_inputs("tiny", batch=4, **FLOAT8_SIZES)
    compiler.compile(
        model,
        batch,
        cluster=Cluster.local(1),
        optimizer=OPTIMIZER,
        autocast="bfloat16",
        float8=True,
        save=folder,
    )
    return batch


@pytest.mark.ranks
def test_products_in_float8_are_compiled_with_the_layer(tmp_path):
    """Casts and products are parts of the layers' graphs, and break none of them."""
    batch, losses, graphs = float8_build(tmp_path), {}, []
    for is_compiled in (False, True):
        step = load(tmp_path)
        if is_compiled:
            compile_program(step._module, step._runtime, counting(graphs))
        losses[is_compiled] = [step(batch).item() for _ in range(3)]
    assert losses[True] == losses[False]
    assert len(graphs) == 2
    called = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    assert sum("_scaled_mm" in name for name in called) == 6 + 12


@pytest.mark.slow
def test_code_of_the_inductor_trains_in_float8_as_eager_kernels(tmp_path):
    batch, losses = float8_build(tmp_path), {}
    for is_compiled in (False, True):
        with load(tmp_path, compile=is_compiled) as step:
            losses[is_compiled] = [step(batch).item() for _ in range(3)]
    assert losses[True] == pytest.approx(losses[False], rel=1e-2)


@pytest.mark.slow
def test_code_of_the_inductor_trains_as_eager(tmp_path):
    folder = compiled(tmp_path / "build", "none", optimizer=OPTIMIZER)
    with load(folder, compile=True) as step:
        losses = [step(batch).item() for batch in batches()]
        assert_trained_as_eager(losses, step.state_dict())
