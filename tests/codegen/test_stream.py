"""Parameters in host memory: the same numbers, two layers' at most on the device, and no read of what is not there."""

import gc
import weakref
from dataclasses import replace
from importlib import import_module
from itertools import pairwise

import pytest
import torch

import superscaler as ss
from superscaler import compiler
from superscaler.codegen.comparison import initial_state
from superscaler.codegen.emit import emit
from superscaler.codegen.memory import peak_memory
from superscaler.codegen.program import FromHost, ToHost, reads_of
from superscaler.codegen.stream import streamed_groups
from superscaler.codegen.verify import verify_programs
from superscaler.codegen.virtual import run_step
from superscaler.errors import PlanError, VerificationError
from superscaler.ir.graph import Phase
from superscaler.ir.optimizers import SGD, AdamW
from superscaler.ir.tensor import Role
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import parse_plan
from superscaler.runtime.fetched_ahead import ThreadCarrier
from superscaler.runtime.loaded import load
from tests.codegen.plans import programs_of, tiny_gpt

SIZES = {"gpt": {"layers": 4, "width": 16, "heads": 4, "seq": 8, "vocab": 32}, "llama": {}, "swin": {}}


def tiny(name, dtype=torch.float64, optimizer=None):
    """A model, its inputs, and its inference graph, or its training step."""
    torch.manual_seed(0)
    module = import_module(f"models.{name}")
    model = module.build("tiny", **SIZES[name]).to(dtype)
    inputs = module.example_inputs("tiny", batch=4, **SIZES[name])
    inputs = {key: x.to(dtype) if x.is_floating_point() else x for key, x in inputs.items()}
    return model, inputs, trace(model, inputs, optimizer=optimizer)


def compiled(how, graph):
    return compiler.plan(graph, Cluster.local(parse_plan(how).num_devices), how).verify()


def group_bytes(program, part):
    """What each group of a body weighs."""
    return [
        sum(program.values[move.write].num_bytes for move in group)
        for group in streamed_groups(program.bodies[part])
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("how", ["none", "tp=2", "pp=2", "dp=2", "pp=2,micro_batches=2"])
@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_outputs_are_those_without_offload_bit_for_bit_and_those_of_eager(name, how, dtype):
    model, inputs, graph = tiny(name, dtype)
    offloaded = "offload=parameters" if how == "none" else f"{how},offload=parameters"
    before, after = compiled(how, graph), compiled(offloaded, graph)
    state = initial_state(graph, model)
    for left, right in zip(
        run_step(before.programs, state, inputs, 1).outputs.values(),
        run_step(after.programs, state, inputs, 1).outputs.values(),
        strict=True,
    ):
        assert torch.equal(left, right)
    assert after.compare_with_eager(model, inputs).largest < (1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize(
    "how",
    [
        "offload=parameters",
        "tp=2,sp,recompute,offload=optimizer+parameters",
        "cp=2,micro_batches=2,offload=parameters",
        "co_shard=2,offload=parameters",
        "dp=2,offload=optimizer+parameters",
        "dp=2,zero=3,micro_batches=2,offload=parameters",
        "pp=2,micro_batches=4,offload=optimizer+activations+parameters",
        "pp=2,schedule=zb-h1,micro_batches=4,offload=parameters",
        "pp=2,schedule=zb-v,micro_batches=4,offload=optimizer+parameters",
        "pp=2,schedule=interlaced,micro_batches=4,offload=parameters",
        "pp=2,schedule=bidirectional,micro_batches=4,recompute=full,offload=optimizer+activations+parameters",
    ],
)
def test_training_steps_are_those_of_eager_pytorch(how):
    model, inputs, graph = tiny_gpt(4)
    assert compiled(how, graph).compare_with_eager(model, inputs, steps=2).largest < 1e-11


def test_a_model_without_layers_is_fetched_module_by_module():
    torch.manual_seed(0)
    model = torch.nn.Sequential()
    for name in ("first", "second", "third"):
        model.add_module(name, torch.nn.Linear(8, 8))
    inputs = (torch.randn(4, 8),)
    made = compiled("offload=parameters", trace(model, inputs))
    (program,) = made.programs
    (part,) = program.parts(Phase.FORWARD)
    groups = [[move.read for move in group] for group in streamed_groups(program.bodies[part])]
    assert groups == [[f"{name}.weight", f"{name}.bias"] for name in ("first", "second", "third")]
    assert made.compare_with_eager(model, inputs).largest < 1e-5


# memory


@pytest.mark.parametrize("how", ["none", "tp=2", "pp=2"])
@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_the_parameters_of_two_layers_at_most_are_on_the_device(name, how):
    graph = tiny(name)[2]
    offloaded = "offload=parameters" if how == "none" else f"{how},offload=parameters"
    for before, after in zip(compiled(how, graph).programs, compiled(offloaded, graph).programs, strict=True):
        whole, rest = peak_memory(before), peak_memory(after)
        (part,) = after.parts(Phase.FORWARD)
        sizes = group_bytes(after, part)
        two = max(map(sum, pairwise(sizes)))
        buffers = sum(
            before.values[name].num_bytes
            for name in before.stored
            if before.graph.tensors[before.values[name].tensor].role is Role.BUFFER
        )
        others = whole.total - whole.parameters
        assert whole.host == 0
        assert rest.host == whole.parameters - buffers
        assert rest.parameters - buffers <= two < sum(sizes)
        assert rest.total <= others + buffers + two


class Counting(ThreadCarrier):
    """A carrier that knows how much of what it copied is still held."""

    def __init__(self):
        super().__init__()
        self.held, self.most = 0, 0

    def start(self, sources):
        arriving = super().start(sources)
        size = sum(source.nbytes for source in sources)
        self.held += size
        self.most = max(self.most, self.held)
        weakref.finalize(arriving.copies[0].untyped_storage(), self._forget, size)
        return arriving

    def _forget(self, size):
        self.held -= size


@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_a_program_holds_as_much_as_was_predicted(name, tmp_path):
    model, inputs, graph = tiny(name)
    made = compiled("offload=parameters", graph)
    made.save(tmp_path / "build")
    (program,) = made.programs
    (part,) = program.parts(Phase.FORWARD)
    step = load(tmp_path / "build")
    carrier = step._runtime._carrier = Counting()
    outputs = step(inputs)
    with torch.no_grad():
        expected = model(**inputs)
    torch.testing.assert_close(next(iter(outputs.values())), expected, rtol=1e-12, atol=1e-12)
    gc.collect()
    assert carrier.most == max(map(sum, pairwise(group_bytes(program, part))))
    assert carrier.held == 0
    assert {name for name, x in step.weights.items() if name in step.on_host} == {
        tensor.name for tensor in graph.of_role(Role.PARAMETER)
    }


def test_in_training_parameters_leave_the_device_and_gradients_stay():
    graph = tiny("llama", optimizer=AdamW())[2]
    (before,) = compiled("none", graph).programs
    (after,) = compiled("offload=parameters", graph).programs
    whole, rest = peak_memory(before), peak_memory(after)
    assert rest.host == whole.parameters
    two = max(
        max(map(sum, pairwise(group_bytes(after, part))))
        for part in after.parts(Phase.FORWARD) + after.parts(Phase.BACKWARD)
    )
    assert rest.total <= whole.total - whole.parameters + two
    assert rest.states == whole.states


# source


def test_the_source_takes_a_layer_in_one_line_and_forgets_it_in_one():
    (program,) = (made := compiled("offload=parameters", tiny("gpt")[2])).programs
    source = emit(made, program)
    assert source.count("rt.fetch_ahead(") == 1
    assert source.count("next(fetched)") == 3  # embeddings, the layers' function, head
    assert source.count("for layer in range(4)") == 2  # the loop, and the table of names
    block, forward = source.split("def block_forward")[1].split("def forward")
    assert "p[" not in block
    assert "wte_weight, wpe_weight = next(fetched)" in forward
    assert forward.count("del positions, wte_weight, wpe_weight") == 1


def test_tied_weights_are_fetched_for_each_use():
    (program,) = compiled("offload=parameters", tiny("gpt")[2]).programs
    (part,) = program.parts(Phase.FORWARD)
    groups = [{move.read for move in group} for group in streamed_groups(program.bodies[part])]
    assert [number for number, group in enumerate(groups) if "wte.weight" in group] == [0, len(groups) - 1]
    assert program.stored.count("wte.weight") == 1


@pytest.mark.parametrize("name", ["gpt", "llama", "swin"])
def test_the_source_has_the_functions_it_has_without_offload(name):
    graph = tiny(name, torch.float32)[2]
    plain, offloaded = (compiled(how, graph) for how in ("none", "offload=parameters"))
    names = [
        [
            line.partition("(")[0]
            for line in emit(made, made.programs[0]).splitlines()
            if line.startswith("def ")
        ]
        for made in (plain, offloaded)
    ]
    assert names[0] == names[1]


# the proof


def without(program, gone, renamed):
    """The program without some fetches; who read what they brought reads the home where `renamed`."""
    (part,) = program.parts(Phase.FORWARD)
    homes = {move.write: move.read for move in gone} if renamed else {}
    body = []
    for instruction in program.bodies[part]:
        if instruction in gone:
            continue
        if not homes.keys().isdisjoint(reads_of(instruction)):
            instruction = replace(instruction, reads=tuple(homes.get(n, n) for n in instruction.reads))
        body.append(instruction)
    return replace(program, bodies={**program.bodies, part: tuple(body)})


def inference_program():
    made = compiled("offload=parameters", tiny("gpt")[2])
    (program,) = programs_of(made)
    (part,) = program.parts(Phase.FORWARD)
    return made, program, streamed_groups(program.bodies[part])


def test_a_parameter_that_is_not_fetched_is_found():
    made, program, groups = inference_program()
    verify_programs(made, [program])
    for group in groups:
        for move in group:
            with pytest.raises(VerificationError, match="in host memory"):
                verify_programs(made, [without(program, [move], renamed=True)])


def test_a_group_that_is_not_waited_for_is_found():
    made, program, groups = inference_program()
    for group in groups:
        with pytest.raises(VerificationError):
            verify_programs(made, [without(program, group, renamed=False)])


def test_groups_in_another_order_than_they_travel_are_found():
    made, program, groups = inference_program()
    (part,) = program.parts(Phase.FORWARD)
    swapped = {1: 2, 2: 1}
    body = tuple(
        replace(i, group=swapped.get(i.group, i.group)) if isinstance(i, FromHost) else i
        for i in program.bodies[part]
    )
    assert len(groups) > 2
    with pytest.raises(VerificationError, match="fetches group 2 after group 0"):
        verify_programs(made, [replace(program, bodies={**program.bodies, part: body})])


def test_what_the_program_makes_cannot_be_fetched_ahead():
    made, program, _ = inference_program()
    (part,) = program.parts(Phase.FORWARD)
    body = list(program.bodies[part])
    place = next(n for n, i in enumerate(body) if isinstance(i, FromHost) and i.group == 1)
    first = body[place]
    values = dict(program.values)
    values["copy"] = replace(values[first.write], name="copy", host=True)
    made_here = [FromHost(first.read, first.write), ToHost(first.write, "copy")]
    values["again"] = replace(values[first.write], name="again")
    body[place : place + 1] = [*made_here, FromHost("copy", "again", 1)]
    mutant = replace(program, values=values, bodies={**program.bodies, part: tuple(body)})
    with pytest.raises(VerificationError, match="fetches ahead what is not stored"):
        verify_programs(made, [mutant])


# the planner


def test_only_the_parameters_chosen_wait_in_host_memory():
    def layers_alone(p):
        p.assign(p.everything(), p.mesh([0]))
        p.offload_parameters(p.select("h.*"))

    model, inputs, graph = tiny("gpt")
    made = compiler.plan(graph, Cluster.local(1), layers_alone).verify()
    (program,) = made.programs
    hosted = {name for name in program.stored if program.values[name].host}
    assert hosted == {tensor.name for tensor in graph.of_role(Role.PARAMETER) if tensor.name.startswith("h.")}
    assert "waits in host memory" in made.explain("h.0.mlp.up/linear")
    assert made.compare_with_eager(model, inputs).largest < 1e-12


def test_parameters_gathered_over_devices_and_parameters_fetched_are_two_queues():
    def some_of_each(p):
        ss.recipes.data_parallel(p)
        ss.recipes.parameter_sharding(p)
        p.offload_parameters(p.select("h.1"))

    def on_two(p):
        p.assign(p.everything(), p.mesh(range(2), dp=2))
        some_of_each(p)

    model, inputs, graph = tiny_gpt(4)
    made = compiler.plan(graph, Cluster.local(2), on_two).verify()
    source = emit(made, made.programs[0])
    assert "rt.gather_ahead(" in source
    assert "rt.fetch_ahead(" in source
    assert made.compare_with_eager(model, inputs, steps=2).largest < 1e-11


def test_what_has_no_parameters_cannot_be_offloaded():
    graph = trace(torch.nn.GELU(), (torch.randn(4, 8),))
    with pytest.raises(PlanError, match="reads no parameter") as error:
        compiled("offload=parameters", graph)
    assert error.value.where == "offload=parameters in the plan 'offload=parameters'"
    assert "choose operators that read parameters" in error.value.remedy


@pytest.mark.parametrize("how", ["offload=optimizer+parameters", "offload=optimizer+activations+parameters"])
def test_with_states_it_is_refused_where_there_are_none(how):
    with pytest.raises(PlanError, match="no optimizer state"):
        compiled(how, tiny("gpt")[2])
    with pytest.raises(PlanError, match="no optimizer state"):
        compiled(how, tiny("gpt", optimizer=SGD())[2])


@pytest.mark.parametrize("how", ["dp=2,zero=1", "dp=2,zero=2,micro_batches=2"])
def test_updates_of_pieces_of_what_is_stored_whole_are_refused(how):
    with pytest.raises(PlanError, match="its update is cut over dp") as error:
        compiled(f"{how},offload=parameters", tiny_gpt(4)[2])
    assert "offload=parameters in the plan" in error.value.where
    assert "zero=3" in error.value.remedy


def test_a_word_for_something_else_is_refused_with_those_there_are():
    with pytest.raises(PlanError, match="offload") as error:
        parse_plan("offload=weights")
    assert "parameters" in str(error.value)


def test_what_does_not_fit_on_the_device_is_told_to_wait_in_host_memory():
    graph = tiny("llama")[2]
    size = sum(tensor.num_bytes for tensor in graph.of_role(Role.PARAMETER))
    small = Cluster.local(1).with_memory(size)
    with pytest.raises(VerificationError, match="offload=parameters"):
        compiler.plan(graph, small, "none").verify()
    compiler.plan(graph, small, "offload=parameters").verify()


# time


def test_copies_are_priced_beside_computing_and_are_waited_for_where_they_are_slower():
    graph = tiny("llama")[2]
    cluster = Cluster.preset("dgx-a100").first(1)
    plain = compiler.plan(graph, cluster, "none").simulate()
    made = compiler.plan(graph, cluster, "offload=parameters")
    offloaded = made.simulate()
    (row,) = offloaded.rows
    copies = [(s.end - s.start) for s in row.spans if s.stream == "fetches"]
    (program,) = made.programs
    (part,) = program.parts(Phase.FORWARD)
    assert len(copies) == len(streamed_groups(program.bodies[part]))
    computing = plain.rows[0].computing
    assert row.computing == pytest.approx(computing)
    assert max(computing, sum(copies)) <= offloaded.step_seconds < computing + sum(copies)
