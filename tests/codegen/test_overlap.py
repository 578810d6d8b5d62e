"""What goes on while the program computes: started early, waited for late, proved and shown so."""

from dataclasses import replace

import pytest

from superscaler import compiler
from superscaler.codegen.emit import emit
from superscaler.codegen.memory import peak_memory
from superscaler.codegen.program import Await, Collective, Compute, Free, Keep, Part
from superscaler.codegen.verify import verify_programs
from superscaler.errors import VerificationError
from superscaler.ir.graph import Phase
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import parse_plan
from tests.codegen.plans import planned, programs_of, tiny_gpt

BACKWARD, FORWARD = Part(Phase.BACKWARD, 0), Part(Phase.FORWARD, 0)


def lowered(how, layers=2):
    plan = planned(tiny_gpt(layers=layers)[2], how)
    return plan, programs_of(plan)[0]


def source(how):
    made = compiler.plan(tiny_gpt(layers=4)[2], Cluster.local(parse_plan(how).num_devices), how)
    return emit(made, made.programs[0])


def places(body, kind):
    return [i for i, instruction in enumerate(body) if isinstance(instruction, kind)]


def started(body):
    return [i for i in places(body, Collective) if body[i].is_started]


@pytest.mark.parametrize("how", ["dp=2", "dp=2,zero=1", "dp=2,zero=2,micro_batches=2", "dp=4,zero=3"])
def test_every_gradient_sets_out_where_it_is_made_and_has_arrived_at_the_end(how):
    _, program = lowered(how)
    body = program.bodies[BACKWARD]
    positions = {"wpe/embedding_backward"}  # summed before, as activations, of several micro-batches
    gradients = set(program.graph.gradients.values()) - positions
    assert {program.values[body[i].write].tensor for i in started(body)} - positions == gradients
    assert all(isinstance(body[i + 1], Keep) for i in started(body))
    assert body[-1] == Await()


@pytest.mark.parametrize(
    "how", ["dp=2,micro_batches=2", "dp=2,zero=1,micro_batches=4", "dp=2,pp=2,micro_batches=4,schedule=zb-h1"]
)
def test_what_micro_batches_add_up_sets_out_with_the_last_of_each_stage(how):
    plan = compiler.plan(tiny_gpt(layers=4)[2], Cluster.local(parse_plan(how).num_devices), how)
    for program in plan.programs:
        body = [i for i in program.bodies[Part(Phase.UPDATE)] if not isinstance(i, Free)]
        sums = [i for i in body if isinstance(i, Collective) and i.read in kept_in_backward(program)]
        assert sums
        assert body[: len(sums) + 1] == [*sums, Await()]
        assert all(i.is_started for i in sums)
        text = emit(plan, program)
        assert text.count("rt.accumulate(") >= 10
        last = max(program.tasks, key=lambda task: (task.phase is not Phase.FORWARD, task.micro_batch))
        assert f"mb == {last.micro_batch})" in text or f"mb == {last.micro_batch}," in text


def kept_in_backward(program):
    parts = [*program.parts(Phase.BACKWARD), *program.parts(Phase.WEIGHT)]
    return {i.write for part in parts for i in program.bodies[part] if isinstance(i, Keep)}


def test_gradients_that_are_kept_in_pieces_arrive_a_layer_later():
    _, program = lowered("dp=2,zero=2", layers=4)
    body = program.bodies[BACKWARD]
    waits = [body[i].leaving for i in places(body, Await)]
    per_layer = 15  # a key has no bias
    assert waits == [per_layer] * 4 + [0]


def test_whole_gradients_of_two_layers_at_most_are_held():
    def whole(layers):
        made = compiler.plan(tiny_gpt(layers=layers)[2], Cluster.local(2), "dp=2,zero=2,recompute")
        use = peak_memory(made.programs[0])
        pieces = sum(made.graph.tensors[name].num_bytes for name in made.graph.gradients) / 2
        return use.gradients + use.temporary - pieces

    assert whole(6) <= whole(4)


def test_each_layer_of_gathered_parameters_is_a_group():
    _, program = lowered("dp=2,zero=3", layers=4)
    for part in (FORWARD, BACKWARD):
        gathers = [program.bodies[part][i] for i in places(program.bodies[part], Collective)]
        groups = {}
        for gather in (gather for gather in gathers if gather.group >= 0):
            groups.setdefault(gather.group, []).append(gather.read)
        layers = [{name.split(".")[1] for name in names} for names in groups.values() if names[0][:2] == "h."]
        assert layers == [{str(n)} for n in (range(4) if part == FORWARD else reversed(range(4)))]


def test_a_group_is_held_while_the_group_before_it_is_used():
    """The last layers' activations are gone when the first layer's backward runs: two layers' parameters are not."""
    made = compiler.plan(tiny_gpt(layers=4)[2], Cluster.local(2), "dp=2,zero=3,recompute")
    (program,) = made.programs
    alone = replace(
        program,
        bodies={
            part: tuple(replace(i, group=-1) if isinstance(i, Collective) else i for i in body)
            for part, body in program.bodies.items()
        },
    )
    tensors = made.graph.tensors
    layer = sum(tensors[name].num_bytes for name in made.graph.gradients if name.startswith("h.0."))
    added = peak_memory(program).total - peak_memory(alone).total
    assert 0 < added <= layer


@pytest.mark.parametrize("how", ["dp=2", "dp=2,zero=3"])
def test_blocks_are_still_one_function_each(how):
    text = source(how)
    assert text.count("def block_backward(") == text.count("def block_forward(") == 1
    assert text.count("ops.attention_backward(") == 1
    assert "rt.wait()" in text
    assert "for layer in reversed(range(4)):" in text


def mutated(program, part, change):
    return replace(program, bodies={**program.bodies, part: tuple(change(list(program.bodies[part])))})


def drop_the_last_wait(body):
    return body[:-1]


def wait_early(body):
    return [Await(), *body[:-1]]


def wait_before_the_last_start(body):
    last = started(body)[-1]
    return [*body[:last], Await(), *body[last:-1]]


def leave_one(body):
    return [*body[:-1], Await(1)]


def start_a_sum_that_is_read(body):
    index = next(i for i in places(body, Collective) if not body[i].is_started)
    return [*body[:index], replace(body[index], is_started=True), *body[index + 1 :]]


@pytest.mark.parametrize("change", [drop_the_last_wait, wait_early, wait_before_the_last_start, leave_one])
def test_a_wait_that_is_dropped_early_or_too_short_is_rejected(change):
    plan, program = lowered("dp=2")
    verify_programs(plan, [program])
    with pytest.raises(VerificationError, match="ends while"):
        verify_programs(plan, [mutated(program, BACKWARD, change)])


def test_a_sum_that_is_read_while_under_way_is_rejected():
    plan, program = lowered("dp=2")
    with pytest.raises(VerificationError, match="which is under way"):
        verify_programs(plan, [mutated(program, FORWARD, start_a_sum_that_is_read)])


def read_before_it_has_arrived(body):
    wait = places(body, Await)[0]
    return [*body[:wait], *body[wait + 1 :]]


def test_a_sum_of_all_micro_batches_that_is_read_before_a_wait_is_rejected():
    plan, program = lowered("dp=2,micro_batches=2")
    verify_programs(plan, [program])
    with pytest.raises(VerificationError, match="which is under way"):
        verify_programs(plan, [mutated(program, Part(Phase.UPDATE), read_before_it_has_arrived)])


def test_what_has_another_reader_in_the_update_may_not_set_out_before():
    plan, program = lowered("dp=2,micro_batches=2")
    body = program.bodies[Part(Phase.UPDATE)]
    first = next(i for i in body if isinstance(i, Collective))
    twice = mutated(program, Part(Phase.UPDATE), lambda body: [*body, replace(first, write="again")])
    with pytest.raises(VerificationError, match="goes on meanwhile, outside of a micro-batch"):
        verify_programs(plan, [twice])


def gathers(body):
    return [i for i in places(body, Collective) if body[i].group >= 0]


def swap_two_groups(body):
    numbers = {0: 1, 1: 0}
    return [replace(i, group=numbers.get(i.group, i.group)) if isinstance(i, Collective) else i for i in body]


def leave_a_group_out(body):
    return [replace(i, group=i.group + (i.group > 0)) if isinstance(i, Collective) else i for i in body]


def gather_after_the_first_use(body):
    index = gathers(body)[0]
    reader = next(i for i in places(body, Compute) if body[index].write in body[i].reads)
    return [*body[:index], *body[index + 1 : reader + 1], body[index], *body[reader + 1 :]]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (swap_two_groups, "gathers group 1 after group -1"),
        (leave_a_group_out, "gathers group 2 after group 0"),
        (gather_after_the_first_use, "before it is written"),
    ],
)
def test_groups_out_of_order_are_rejected(change, fault):
    plan, program = lowered("dp=2,zero=3")
    with pytest.raises(VerificationError, match=fault):
        verify_programs(plan, [mutated(program, FORWARD, change)])
