"""Optimizer states in host memory: the same numbers, less memory on the device, and no read of what is not there."""

from dataclasses import replace

import pytest
import torch

from models import gpt
from superscaler import compiler
from superscaler.codegen.emit import emit
from superscaler.codegen.memory import peak_memory
from superscaler.codegen.program import FromHost, ToHost
from superscaler.codegen.verify import verify_programs
from superscaler.errors import PlanError, VerificationError
from superscaler.ir.graph import Phase
from superscaler.ir.optimizers import SGD, AdamW
from superscaler.ir.tensor import Role
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import parse_plan
from tests.codegen.plans import SIZES, programs_of, tiny_gpt


def compiled(how, graph=None):
    return compiler.plan(graph or tiny_gpt()[2], Cluster.local(parse_plan(how).num_devices), how).verify()


@pytest.mark.parametrize(
    "how",
    [
        "offload=optimizer",
        "dp=2,zero=1,offload=optimizer",
        "dp=2,zero=3,micro_batches=2,offload=optimizer",
        "pp=2,micro_batches=4,offload=optimizer",
        "pp=2,schedule=bidirectional,micro_batches=4,offload=optimizer",
        "tp=2,sp,recompute,offload=optimizer",
    ],
)
def test_steps_are_those_of_eager_pytorch(how):
    model, inputs, _ = tiny_gpt()
    assert compiled(how).compare_with_eager(model, inputs, steps=2).largest < 1e-12


def test_master_weights_are_offloaded_with_the_other_states():
    torch.manual_seed(0)
    model, inputs = gpt.build("tiny", **SIZES).bfloat16(), gpt.example_inputs("tiny", batch=4, **SIZES)
    graph = trace(model, inputs, optimizer=AdamW(master_weights=True))
    made = compiled("offload=optimizer", graph)
    (program,) = made.programs
    hosted = {program.values[name].tensor for name in program.stored if program.values[name].host}
    assert hosted == {tensor.name for tensor in graph.of_role(Role.STATE)}


@pytest.mark.parametrize("how", ["none", "dp=2,zero=1", "pp=2,micro_batches=4"])
def test_the_bytes_of_the_states_move_from_the_device_to_the_host(how):
    offloaded = "offload=optimizer" if how == "none" else f"{how},offload=optimizer"
    for before, after in zip(compiled(how).programs, compiled(offloaded).programs, strict=True):
        whole, rest = peak_memory(before), peak_memory(after)
        assert whole.host == rest.states == 0
        assert rest.host == whole.states > 0
        largest = max(tensor.num_bytes for tensor in before.graph.of_role(Role.PARAMETER))
        # the two states of one parameter are on the device at a time
        assert whole.total - whole.states <= rest.total <= whole.total - whole.states + 2 * largest
        assert "in host memory" in str(rest)


def test_the_source_fetches_and_stows_around_the_update():
    made = compiled("offload=optimizer")
    source = emit(made, made.programs[0])
    assert "ops.update_fetching(\n        ops.adamw_,\n" in source


@pytest.mark.parametrize("moving", [FromHost, ToHost])
def test_a_move_that_is_missing_is_found(moving):
    made = compiled("dp=2,zero=1,offload=optimizer")
    (program,) = programs_of(made)
    (part,) = program.parts(Phase.UPDATE)
    body = program.bodies[part]
    at = next(place for place, instruction in enumerate(body) if isinstance(instruction, moving))
    gone = body[at]
    renamed = [
        replace(i, reads=tuple(gone.read if name == gone.write else name for name in i.reads))
        if gone.write in getattr(i, "reads", ())
        else replace(i, read=gone.read)
        if getattr(i, "read", "") == gone.write
        else i
        for i in body
        if i is not gone
    ]
    mutant = replace(program, bodies={**program.bodies, part: tuple(renamed)})
    with pytest.raises(VerificationError, match="in host memory"):
        verify_programs(made, [mutant])


def test_only_the_chosen_updates_keep_their_states_in_host_memory():
    def embeddings(p):
        p.assign(p.everything(), p.mesh([0]))
        p.offload(p.select("wte"))

    model, inputs, graph = tiny_gpt()
    made = compiler.plan(graph, Cluster.local(1), embeddings).verify()
    (program,) = made.programs
    hosted = {name for name in program.stored if program.values[name].host}
    assert hosted == {"wte.weight/exp_avg", "wte.weight/exp_avg_sq"}
    assert "in host memory" in made.explain("wte.weight/adamw")
    assert made.compare_with_eager(model, inputs).largest < 1e-12


def test_an_optimizer_without_states_cannot_be_offloaded():
    model, inputs, _ = tiny_gpt()
    with pytest.raises(PlanError, match="no optimizer state") as error:
        compiled("offload=optimizer", trace(model, inputs, optimizer=SGD()))
    assert error.value.where == "offload=optimizer in the plan 'offload=optimizer'"
