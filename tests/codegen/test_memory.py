import gc
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from benchmarks.memory_watch import MemoryWatch
from superscaler import compiler
from superscaler.codegen.memory import free_values, memory_over_tasks, peak_memory
from superscaler.codegen.program import Free, reads_of, writes_of
from superscaler.ir.graph import Phase
from superscaler.ir.tensor import Role
from superscaler.planner.cluster import Cluster
from superscaler.runtime.build import read_build
from superscaler.runtime.session import load_module, make_runtime
from superscaler.runtime.weights import load_weights
from tests.codegen.plans import planned, programs_of, tiny_gpt
from tests.runtime.ranks import run_ranks


@pytest.mark.parametrize("how", ["none", "tp=2,sp", "dp=2,tp=2,pp=2,micro_batches=4"])
def test_every_value_is_freed_once_and_not_read_again(how):
    for program in programs_of(planned(tiny_gpt()[2], how)):
        result = free_values(program)
        staying = {*program.stored, *program.fed, *program.outputs.values()}
        made = {name for _, i in program.instructions() for name in writes_of(i)} - staying
        freed = [name for _, i in result.instructions() if isinstance(i, Free) for name in i.values]
        assert sorted(freed) == sorted(made)
        for phase, body in result.bodies.items():
            gone = set()
            for instruction in body:
                assert not gone.intersection(reads_of(instruction)), (phase, instruction)
                gone.update(instruction.values if isinstance(instruction, Free) else ())
        assert free_values(result) == result


def test_stored_memory_is_what_the_tensors_weigh():
    graph = tiny_gpt()[2]
    (program,) = map(free_values, programs_of(planned(graph, "none")))
    use = peak_memory(program)
    assert use.parameters == sum(tensor.num_bytes for tensor in graph.of_role(Role.PARAMETER))
    assert use.states == 2 * use.parameters
    assert use.gradients <= use.parameters
    assert use.total == use.parameters + use.states + use.gradients + use.activations + use.temporary


def test_activations_follow_the_micro_batches_in_flight():
    def activations(how):
        return [peak_memory(free_values(p)).activations for p in programs_of(planned(tiny_gpt()[2], how))]

    gpipe, one_f_one_b = (
        activations("pp=2,schedule=gpipe,micro_batches=8"),
        activations("pp=2,micro_batches=8"),
    )
    # at its fullest, stage 0 holds 8 micro-batches or 2, stage 1 holds 8 or 1, all of one block
    more = gpipe[0] - one_f_one_b[0], gpipe[1] - one_f_one_b[1]
    assert more[0] / 6 == pytest.approx(more[1] / 7, rel=0.25)
    assert more[0] / 6 > 8 * 16 * 8 * 8  # at least eight times [1, seq, width] in float64


def test_liveness_agrees_with_counting_every_task_one_by_one():
    """An independent count: unroll the schedule, list what is alive after each instruction."""
    for program in map(free_values, programs_of(planned(tiny_gpt()[2], "pp=2,micro_batches=4"))):
        assert peak_memory(program).total == _unrolled(program)


@pytest.mark.parametrize(
    "how", ["none", "pp=2,micro_batches=4", "pp=2,schedule=zb-v,micro_batches=4", "dp=2,offload=optimizer"]
)
def test_what_tasks_leave_is_there_when_the_next_begin_and_the_fullest_of_them_is_the_peak(how):
    for program in map(free_values, programs_of(planned(tiny_gpt(layers=4)[2], how))):
        tasks = memory_over_tasks(program)
        assert [one.task for one in tasks[1:-1]] == list(program.tasks)
        assert all(one.after.total <= then.most.total for one, then in pairwise(tasks))
        assert all(one.after.total <= one.most.total for one in tasks)
        assert max(one.most.total for one in tasks) == peak_memory(program).total
        assert max(one.most.host for one in tasks) == peak_memory(program).host
        # a step ends as it began
        ended, use = tasks[-1].after, peak_memory(program)
        assert (ended.parameters, ended.states, ended.gradients) == (use.parameters, use.states, 0)
        assert ended.temporary == 0


def _unrolled(program):
    from superscaler.codegen.memory import _Account

    account = _Account(program)  # for the storage each value shares and its bytes
    base = account.base.total()
    alive, most = {}, 0
    tasks = [
        (Phase.PREPARE, 0),
        *((task.phase, task.micro_batch) for task in program.tasks),
        (Phase.UPDATE, 0),
    ]
    for phase, micro_batch in tasks:
        for instruction in program.bodies[program.parts(phase)[0]]:
            for name in writes_of(instruction):
                if name in program.stored:
                    continue
                root = account.root.get(name, name)
                if name in account.kept:  # the first takes over the memory of what it keeps
                    read = account.root.get(instruction.read, instruction.read)
                    alive.setdefault((name, None), (read, micro_batch))
                else:
                    scope = micro_batch if phase in (Phase.FORWARD, Phase.BACKWARD) else None
                    alive[name, scope] = (root, scope)
            if isinstance(instruction, Free):
                for name in instruction.values:
                    alive.pop((name, micro_batch), None) or alive.pop((name, None))
            storages = {storage for storage in alive.values() if storage[0] not in account.resident}
            most = max(most, base + sum(account._bytes([root]).total() for root, _ in storages))
    return most


def held_in_the_third_step(rank, folder, inputs):
    build = read_build(folder)
    runtime = make_runtime(build, rank, torch.device("cpu"))
    module = load_module(folder, build.program_of(rank))
    start = load_weights(None, build, rank, torch.device("cpu"))
    batches = [{name: value.chunk(2)[rank] for name, value in inputs.items()}]
    for step in (1, 2):
        module.train_step(start.weights, start.states, batches, step, runtime)
    gc.collect()
    with MemoryWatch((start.weights, start.states, batches), torch.device("cpu")) as watch:
        module.train_step(start.weights, start.states, batches, 3, runtime)
    return watch.most_bytes


@pytest.mark.ranks
def test_gradients_in_buckets_weigh_what_two_ranks_measure(tmp_path):
    """From the first gradient on there is the memory for all of them; each is copied there and forgotten."""
    _, inputs, graph = tiny_gpt(layers=4)
    made = compiler.plan(graph, Cluster.local(2), "dp=2")
    made.save(tmp_path / "build")
    use = peak_memory(made.programs[0])
    assert use.gradients >= use.parameters
    for measured in run_ranks(held_in_the_third_step, 2, tmp_path, tmp_path / "build", inputs):
        assert measured == pytest.approx(use.total, rel=0.02)


def test_uneven_pieces_count_with_the_largest():
    def uneven(p):
        p.assign(p.everything(), p.mesh(range(2), tp=2))
        p.trans(p.select("h.*.mlp.up").axis("out"), "tp", pieces=(48, 16))

    def even(p):
        p.assign(p.everything(), p.mesh(range(2), tp=2))
        p.trans(p.select("h.*.mlp.up").axis("out"), "tp")

    uses = [
        peak_memory(free_values(programs_of(planned(tiny_gpt()[2], how, 2))[0])) for how in (uneven, even)
    ]
    added = 2 * (48 - 32) * (16 + 16 + 1) * 8  # two layers: rows of up, columns of down, bias of up; float64
    assert uses[0].parameters - uses[1].parameters == added


def test_what_is_never_read_goes_at_once():
    (program,) = programs_of(planned(tiny_gpt()[2], "none"))
    body = program.bodies[program.parts(Phase.FORWARD)[0]]
    lonely = replace(body[0], writes=("lonely",))
    values = {**program.values, "lonely": replace(program.values[body[0].writes[0]], name="lonely")}
    result = free_values(
        replace(
            program,
            values=values,
            bodies={**program.bodies, program.parts(Phase.FORWARD)[0]: (lonely, *body)},
        )
    )
    assert result.bodies[result.parts(Phase.FORWARD)[0]][1] == Free(("lonely",))
