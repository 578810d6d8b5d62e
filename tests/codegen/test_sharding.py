"""States, gradients and parameters cut over data-parallel devices: the numbers of eager PyTorch, in less memory."""

from functools import cache

import pytest
import torch

from models import llama, swin
from superscaler import compiler
from superscaler.codegen.emit import emit
from superscaler.codegen.memory import peak_memory
from superscaler.ir.optimizers import AdamW
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import parse_plan
from tests.codegen.plans import planned, programs_of, tiny_gpt

TOLERANCE = 1e-12


@cache
def tiny_llama():
    torch.manual_seed(0)
    sizes = {"layers": 2, "width": 16, "heads": 4, "kv_heads": 2, "inner": 24, "seq": 8, "vocab": 32}
    model = llama.build("tiny", **sizes).double()
    inputs = llama.example_inputs("tiny", batch=8, **sizes)
    return model, inputs, trace(model, inputs, optimizer=AdamW(clip_norm=1.0))


MODELS = {"gpt": tiny_gpt, "llama": tiny_llama}


def compiled(model, how):
    return compiler.plan(MODELS[model]()[2], Cluster.local(parse_plan(how).num_devices), how)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "how",
    [
        "dp=2,zero=2", "dp=4,zero=2", "dp=2,zero=3", "dp=4,zero=3", "dp=3,zero=3",
        "dp=2,zero=2,micro_batches=2", "dp=2,zero=3,micro_batches=2", "dp=2,zero=3,recompute",
        "dp=2,tp=2,zero=2,sp", "dp=2,tp=2,zero=3,sp", "dp=2,pp=2,zero=2,micro_batches=2",
        "dp=2,pp=2,zero=3,micro_batches=2", "dp=2,tp=2,pp=2,zero=3,sp,recompute,micro_batches=2",
    ],
)  # fmt: skip
def test_plans_compute_what_eager_pytorch_computes(model, how):
    module, inputs, _ = MODELS[model]()
    found = compiled(model, how).verify().compare_with_eager(module, inputs, steps=2)
    assert found.largest <= TOLERANCE, str(found)


def memory(how):
    (program,) = compiled("llama", how).programs
    return peak_memory(program)


@pytest.mark.parametrize("devices", [2, 4])
def test_each_stage_of_zero_cuts_one_more_part_of_the_memory(devices):
    whole, *stages = [memory(f"dp={devices},{zero}") for zero in ("zero=0", "zero=1", "zero=2", "zero=3")]
    states, gradients, parameters = stages
    assert whole.states == 2 * whole.parameters
    for use in stages:
        assert use.states * devices == whole.states
    assert states.parameters == gradients.parameters == whole.parameters
    assert parameters.parameters * devices == whole.parameters


def kept_bytes(how):
    """What is kept of gradients from micro-batch to micro-batch."""
    program = programs_of(planned(tiny_llama()[2], how))[0]
    return sum(
        8 * torch.Size(extent.constant for extent in value.shape).numel()
        for name, value in program.values.items()
        if name.endswith("|kept") and value.tensor in program.graph.gradients.values()
    )


@pytest.mark.parametrize("zero", [2, 3])
def test_gradients_are_kept_in_pieces(zero):
    assert kept_bytes("dp=4,micro_batches=2") == 4 * kept_bytes(f"dp=4,zero={zero},micro_batches=2")


def test_only_the_layer_at_hand_has_its_parameters_together():
    def temporary(layers):
        graph = tiny_gpt(layers=layers)[2]
        (program,) = compiler.plan(graph, Cluster.local(2), "dp=2,zero=3,recompute").programs
        return peak_memory(program).temporary

    assert temporary(4) == temporary(8)


def test_a_gradient_is_reshaped_in_the_update():
    """The pieces of a merged patch's norm lie inside its one dim, so that they are joined around a reshape."""
    sizes = {"image": 16, "window": 2, "channels": 8, "depths": (1, 1), "heads": (2, 2), "classes": 6}
    model, inputs = swin.build("tiny", **sizes), swin.example_inputs("tiny", batch=4, **sizes)
    plan = compiler.plan(
        trace(model, inputs, optimizer=AdamW()), Cluster.local(4), "dp=2,pp=2,zero=1"
    ).verify()
    sources = [emit(plan, program) for program in plan.programs]
    assert any(".reshape(" in source.partition("def update")[2] for source in sources)
