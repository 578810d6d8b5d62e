"""What waits in host memory: the same numbers, less memory on the device, and no read of what is not there."""

import re
from dataclasses import replace
from importlib import import_module
from math import prod

import pytest
import torch

from models import gpt
from superscaler import compiler
from superscaler.codegen.emit import emit
from superscaler.codegen.memory import peak_memory
from superscaler.codegen.program import Compute, FromHost, Keep, ToHost, reads_of, writes_of
from superscaler.codegen.verify import verify_programs
from superscaler.errors import PlanError, VerificationError
from superscaler.ir.graph import Phase
from superscaler.ir.layout import Extent
from superscaler.ir.optimizers import SGD, AdamW
from superscaler.ir.tensor import DTYPE_BYTES, Role
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
        "offload=activations",
        "dp=2,zero=1,recompute=layers,offload=optimizer+activations",
        "dp=2,zero=3,micro_batches=2,recompute=selective,offload=activations",
        "pp=2,schedule=1f1b,micro_batches=4,offload=activations",
        "pp=2,schedule=zb-h1,micro_batches=4,offload=activations",
        "pp=2,schedule=bidirectional,micro_batches=4,recompute=full,offload=activations",
        "tp=2,sp,offload=activations",
        "cp=2,micro_batches=2,offload=activations",
        "co_shard=2,offload=activations",
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


# activations


def tiny(name):
    """A model in float64, its inputs, and its training step."""
    torch.manual_seed(0)
    module = import_module(f"models.{name}")
    inputs = module.example_inputs("tiny", batch=4)
    model = module.build("tiny").double()
    inputs = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
    return model, inputs, trace(model, inputs, optimizer=AdamW())


@pytest.mark.parametrize("name", ["llama", "moe", "mbart", "swin"])
def test_whatever_layers_save_may_wait_in_host_memory(name):
    model, inputs, graph = tiny(name)
    made = compiled("offload=activations,micro_batches=2", graph)
    assert made.compare_with_eager(model, inputs).largest < 1e-12


def saved_by_layers(program):
    """Bytes of what the forwards of layers leave for later, by an independent count over the unchanged program."""
    forward = [i for part in program.parts(Phase.FORWARD) for i in program.bodies[part]]
    later = [
        i
        for phase in (Phase.BACKWARD, Phase.WEIGHT)
        for part in program.parts(phase)
        for i in program.bodies[part]
    ]
    made = {name for i in forward if not isinstance(i, Keep) for name in writes_of(i)}
    return {
        name
        for i in later
        if isinstance(i, Compute) and program.graph.by_name[i.operator].module.startswith("h.")
        for name in reads_of(i)
        if name in made
    }


def bytes_of(program, names):
    values = [program.values[name] for name in names]
    return sum(prod(e.constant for e in value.shape) * DTYPE_BYTES[value.dtype] for value in values)


@pytest.mark.parametrize("layers", [4, 8])
def test_of_activations_one_layers_are_on_the_device(layers):
    graph = tiny_gpt(layers)[2]
    (before,), (after,) = compiled("none", graph).programs, compiled("offload=activations", graph).programs
    whole, rest = peak_memory(before), peak_memory(after)
    saved = bytes_of(before, saved_by_layers(before))
    assert rest.host == saved
    assert whole.activations - rest.activations == pytest.approx(saved * (layers - 1) / layers, rel=0.1)
    assert rest.total < whole.total


def test_of_micro_batches_in_flight_the_activations_are_in_host_memory():
    graph = tiny_gpt(4)[2]
    how = "pp=2,schedule=1f1b,micro_batches=4"
    before, after = compiled(how, graph).programs, compiled(f"{how},offload=activations", graph).programs
    first, second = (bytes_of(program, saved_by_layers(program)) for program in before)
    # of stage 0 two micro-batches are in flight, of stage 1 one
    assert [peak_memory(program).host for program in after] == [2 * first, second]
    for one, other in zip(before, after, strict=True):
        assert peak_memory(other).total < peak_memory(one).total


def test_with_recomputation_the_inputs_of_layers_wait_in_host_memory():
    graph = tiny_gpt(4)[2]
    (program,) = compiled("recompute=layers,offload=activations", graph).programs
    stowed = [i.read for _, i in program.instructions() if isinstance(i, ToHost)]
    assert len(stowed) == 4
    assert {program.values[name].shape for name in stowed} == {(Extent(8), Extent(8), Extent(16))}
    assert peak_memory(program).host == bytes_of(program, stowed)


def test_views_of_one_memory_move_it_once():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = torch.nn.Linear(8, 16), torch.nn.Linear(16, 8)

        def forward(self, x):
            up = self.up(x)
            turned = torch.sigmoid(up).transpose(1, 2)
            # sigmoid's backward reads its result, the product's reads a view of it
            return x + self.down((turned * turned.exp()).transpose(1, 2))

    class Layers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(Twice() for _ in range(2))

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x.square().mean()

    torch.manual_seed(0)
    model, inputs = Layers().double(), {"x": torch.randn(4, 6, 8, dtype=torch.float64)}
    made = compiled("offload=activations", trace(model, inputs, optimizer=AdamW()))
    assert made.compare_with_eager(model, inputs).largest < 1e-12
    (program,) = made.programs
    stowed = [i.read for _, i in program.instructions() if isinstance(i, ToHost)]
    assert peak_memory(program).host < bytes_of(program, stowed)


def test_layers_stay_alike_and_stow_and_fetch_in_one_statement():
    made = compiled("offload=activations", tiny_gpt(4)[2])
    source = emit(made, made.programs[0])
    assert source.count("rt.stow(") == source.count("rt.fetch(*saved)") == 1
    assert "for layer in range(4):" in source
    assert "for layer in reversed(range(4)):" in source


@pytest.mark.parametrize("name", ["moe", "swin"])  # whose layers share tables of positions, or differ in part
def test_the_source_has_the_functions_it_has_without_offload(name):
    graph = tiny(name)[2]
    functions = [
        re.findall(r"^def (\w+)", emit(made, made.programs[0]), re.MULTILINE)
        for made in (
            compiled("none", graph),
            compiled("offload=activations", graph),
        )
    ]
    assert "block_backward" in functions[0]
    assert functions[0] == functions[1]


def test_what_two_phases_read_is_fetched_for_each():
    made = compiled("pp=2,schedule=zb-h1,micro_batches=2,offload=activations", tiny_gpt(4)[2])
    for program in made.programs:
        for phase in (Phase.BACKWARD, Phase.WEIGHT):
            (part,) = program.parts(phase)
            assert any(isinstance(i, FromHost) for i in program.bodies[part])


def test_only_the_chosen_layers_leave_their_activations_in_host_memory():
    def first_half(p):
        p.assign(p.everything(), p.mesh([0]))
        p.offload_activations(p.select("h.0"))

    model, inputs, graph = tiny_gpt(4)
    made = compiler.plan(graph, Cluster.local(1), first_half).verify()
    (program,) = made.programs
    fetching = [i for _, i in program.instructions() if isinstance(i, FromHost)]
    readers = {
        i.operator
        for _, i in program.instructions()
        if isinstance(i, Compute) and {f.write for f in fetching} & {*i.reads}
    }
    assert readers
    assert all(name.startswith("h.0") for name in readers)
    assert "in host memory" in made.explain("h.0.mlp/gelu_backward")
    assert made.compare_with_eager(model, inputs).largest < 1e-12


def test_a_graph_without_a_backward_has_no_activations_to_offload():
    model, inputs, _ = tiny_gpt()
    with pytest.raises(PlanError, match="nothing for a backward") as error:
        compiled("offload=activations", trace(model, inputs))
    assert error.value.where == "offload=activations in the plan 'offload=activations'"
