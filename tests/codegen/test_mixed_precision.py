"""Lower precision, float32 copies and loss scaling are those of eager PyTorch, under every plan.

Bounds: on one device the operators are the same and so are the bits. Where a sum in bfloat16 (8 bits) or float16
(11 bits) is cut, each piece is rounded once more: gradients agree to a few units of the last of these bits.
"""

import inspect
from dataclasses import replace
from functools import cache

import pytest
import torch
from safetensors.torch import save_file

import superscaler as ss
from models import gpt
from superscaler import compiler
from superscaler.codegen.comparison import compare_programs_with_eager, initial_state, name_inputs
from superscaler.codegen.eager import Eager
from superscaler.codegen.virtual import run_step
from superscaler.errors import TraceError
from superscaler.ir.text import format_graph, parse_graph
from superscaler.ir.trace import trace
from superscaler.planner.recipes import parse_plan
from tests.codegen.plans import SIZES, planned, programs_of
from tests.codegen.test_emit import STEPS, torchrun
from tests.codegen.test_virtual import check

PLANS = ["dp=2", "tp=2", "pp=2", "dp=2,zero=1", "dp=2,tp=2,pp=2,micro_batches=4", "tp=2,sp"]
BITS = {"bfloat16": 8, "float16": 11}
SGD = ss.SGD(lr=0.1, momentum=0.9, clip_norm=0.1)


@cache
def tiny(dtype=torch.float32):
    torch.manual_seed(0)
    return gpt.build("tiny", **SIZES).to(dtype), gpt.example_inputs("tiny", batch=8, **SIZES)


def compared(graph, model, inputs, how, steps=3):
    plan = planned(graph, how)
    return compare_programs_with_eager(plan, programs_of(plan), model, inputs, steps=steps)


@pytest.mark.parametrize("dtype", BITS)
def test_gradients_of_autocast_on_one_device_are_those_of_eager_autocast_bit_for_bit(dtype):
    """The update rounds as the optimizer's kernels do, which depend on the processor."""
    model, inputs = tiny()
    found = compared(trace(model, inputs, optimizer=SGD, autocast=dtype), model, inputs, "none", steps=1)
    assert found.gradients == 0.0
    assert max(found.parameters, found.loss) < 1e-6


@pytest.mark.parametrize("how", PLANS)
def test_autocast_under_a_plan_is_eager_autocast_but_for_rounding(how):
    model, inputs = tiny()
    found = compared(trace(model, inputs, optimizer=SGD, autocast="bfloat16"), model, inputs, how)
    assert found.largest < 8 * 2.0 ** -BITS["bfloat16"], found
    assert found.replicas == 0.0


def test_whole_operators_follow_the_lists_of_torch_and_a_weight_is_cast_once():
    model, inputs = tiny()
    graph = trace(model, inputs, optimizer=SGD, autocast="bfloat16")
    dtypes = {kind: {graph.tensors[o.reads[0]].dtype for o in graph.operators if o.kind == kind}
              for kind in ("linear", "attention", "cross_entropy", "aten.native_layer_norm")}  # fmt: skip
    assert dtypes["linear"] == dtypes["attention"] == {"bfloat16"}
    assert dtypes["cross_entropy"] == dtypes["aten.native_layer_norm"] == {"float32"}
    casts = [o.reads[0] for o in graph.operators if o.kind == "aten._to_copy" and o.reads[0] in graph.updates]
    assert len(casts) == len(set(casts)) > 0
    assert parse_graph(format_graph(graph)).autocast == "bfloat16"


def test_gradients_are_added_up_in_float32():
    model, inputs = tiny()
    plan = planned(trace(model, inputs, optimizer=SGD, autocast="bfloat16"), "dp=2,micro_batches=2")
    gradients = set(plan.graph.gradients.values())
    tensors = {plan.materialized.values[transfer.read].tensor for _, transfer in plan.transfers}
    assert gradients & tensors
    assert {plan.graph.tensors[name].dtype for name in gradients} == {"float32"}
    assert not any("linear_weight_gradient" in name and name not in gradients for name in tensors)


def test_an_unknown_precision_is_refused():
    model, inputs = tiny()
    with pytest.raises(TraceError, match="autocast to 'int8'"):
        trace(model, inputs, optimizer=SGD, autocast="int8")


@pytest.mark.parametrize("optimizer", [SGD, ss.AdamW(lr=1e-3, master_weights=True)])
@pytest.mark.parametrize("how", ["none", "dp=2", "dp=2,zero=1", "tp=2", "dp=2,tp=2,pp=2,micro_batches=2"])
def test_master_weights_of_a_bfloat16_model(how, optimizer):
    model, inputs = tiny(torch.bfloat16)
    optimizer = replace(optimizer, master_weights=True, lr=1e-4)
    graph = trace(model, inputs, optimizer=optimizer)
    assert graph.tensors["wte.weight/master"].dtype == "float32"
    found = compared(graph, model, inputs, how, steps=1)
    assert found.gradients < 8 * 2.0 ** -BITS["bfloat16"], found
    assert optimizer.kind != "sgd" or found.parameters < 0.05, found
    assert found.replicas == 0.0


class Perceptron(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(4, 8), torch.nn.Linear(8, 4)

    def forward(self, x, y):
        return (self.down(torch.tanh(self.up(x))) - y).square().mean()


SCALING = ss.LossScale(init=1024.0, growth=4.0, backoff=0.25, interval=2)


@pytest.mark.parametrize("how", ["none", "dp=2", "tp=2", "dp=2,zero=1", "dp=2,tp=2,micro_batches=2", "dp=4"])
@pytest.mark.parametrize("sample", [0, 7])
@pytest.mark.parametrize(
    "optimizer", [ss.AdamW(lr=0.1, clip_norm=0.1), ss.SGD(lr=0.1, momentum=0.9), ss.Lion(lr=0.1)]
)
def test_an_overflow_on_any_rank_skips_the_step_on_all(how, sample, optimizer):
    """Against torch.amp.GradScaler, with an infinity in one sample of steps 1 and 4 out of 7."""
    torch.manual_seed(0)
    model, inputs = Perceptron().double(), (torch.randn(8, 4).double(), torch.randn(8, 4).double())
    graph = trace(model, inputs, optimizer=optimizer, loss_scale=SCALING)
    plan = planned(graph, how)
    programs, eager, state = programs_of(plan), Eager(graph, model, None), initial_state(graph, model)
    for step in range(1, 8):
        x = torch.randn(8, 4).double()
        if step in (1, 4):
            x[sample, 2] = float("inf")
        call = inspect.signature(model.forward).bind(x, inputs[1])
        result = run_step(programs, state, name_inputs(graph, call), step)
        truth = eager.step(call, {}, step)
        before, state = state, result.state
        for name, value in truth["parameters"].items():
            torch.testing.assert_close(state[name], value, rtol=1e-12, atol=1e-15)
        assert state["loss_scale/scale"].item() == eager.scaler.get_scale()
        if step in (1, 4):
            assert all(torch.equal(state[name], before[name]) for name in truth["parameters"])
    assert state["loss_scale/updates"].item() == 5


@pytest.mark.parametrize("how", ["none", *PLANS])
def test_loss_scaling_with_clipping_in_double_precision(how):
    torch.manual_seed(0)
    model, inputs = gpt.build("tiny", **SIZES).double(), tiny()[1]
    check(model, inputs, trace(model, inputs, optimizer=SGD, loss_scale="dynamic"), how)


@pytest.mark.parametrize("how", ["none", "dp=2", "tp=2", "dp=2,tp=2,pp=2,micro_batches=4,zero=1"])
def test_float16_finds_its_scale_as_the_gradient_scaler_does(how):
    model, inputs = tiny()
    scaling = ss.LossScale(init=2.0**18, interval=2)
    graph = trace(model, inputs, optimizer=SGD, autocast="float16", loss_scale=scaling)
    found = compared(graph, model, inputs, how, steps=6)
    assert found.largest < 16 * 2.0 ** -BITS["float16"], found
    assert found.replicas == 0.0


@pytest.mark.ranks
@pytest.mark.parametrize("how", ["dp=2,tp=2", "pp=2,micro_batches=2"])
def test_torchrun_skips_overflows_and_trains_on(how, tmp_path):
    """The first batches overflow float16 at this scale; all ranks skip them together and agree on the rest."""
    torch.manual_seed(1)
    model, _ = tiny()
    data = gpt.example_inputs("tiny", batch=8 * STEPS, **SIZES)
    save_file(data, tmp_path / "data.safetensors")
    scaling = ss.LossScale(init=2.0**40, backoff=2.0**-30)
    first = {name: value[:8] for name, value in data.items()}
    plan = compiler.compile(
        model, first, cluster=ss.Cluster.local(parse_plan(how).num_devices), plan=how, optimizer=SGD,
        autocast="float16", loss_scale=scaling, save=tmp_path / "build",
    )  # fmt: skip
    losses, weights = torchrun(tmp_path, plan.num_devices)
    state = initial_state(plan.graph, model)
    for step in range(1, STEPS + 1):
        batch = {name: value[8 * step - 8 : 8 * step] for name, value in data.items()}
        result = run_step(plan.programs, state, batch, step)
        state = result.state
        assert losses[step - 1] == pytest.approx(result.outputs[plan.graph.outputs[0]].item(), rel=1e-3)
    assert state["loss_scale/updates"].item() == STEPS - 1
    for name, value in weights.items():
        assert (value - state[name]).norm() <= 1e-2 * state[name].norm(), name
