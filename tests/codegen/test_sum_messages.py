"""Which started sums travel together: followed on the program, simulated, and what ranks really send is the same."""

import pytest
import torch
from safetensors.torch import save_file

from models import gpt
from superscaler import compiler
from superscaler.codegen.program import Part
from superscaler.codegen.sum_messages import sum_messages
from superscaler.ir import bucket
from superscaler.ir.graph import Phase
from superscaler.ir.optimizers import AdamW
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import parse_plan
from superscaler.planner.schedule import Task
from superscaler.planner.steps import StepKind
from superscaler.runtime import started
from superscaler.runtime.build import read_build
from superscaler.runtime.data import Batches
from superscaler.runtime.session import load_module, make_runtime
from superscaler.runtime.weights import load_weights
from superscaler.simulator.replay import Stream
from tests.runtime.ranks import run_ranks

SIZES = {"layers": 4, "width": 15, "heads": 3, "seq": 8, "vocab": 32}
"""What is 15 wide cannot be cut in two: under ZeRO its gradient is summed whole."""


def messages_in_order(program):
    """Those of a step, as its tasks come."""
    messages = sum_messages(program, Cluster.local(2).transport.joined_bytes)
    tasks = (*program.tasks, Task(-1, Phase.UPDATE, 0))
    last = {Part(task.phase, task.stage): number for number, task in enumerate(tasks)}
    for number, task in enumerate(tasks):
        part = Part(task.phase, task.stage)
        own = [message for message in messages if message.part == part]
        yield from (one for one in own if number == last[part] or not one.is_accumulated)


def joined_bytes(bucket_bytes):
    return min(2000, bucket_bytes)


def sent_in_the_second_step(rank, folder, bucket_bytes):
    """Of every message of started sums the kind of communication and the bytes."""
    bucket.BUCKET_BYTES = started.BUCKET_BYTES = bucket_bytes
    bucket.JOINED_BYTES["cpu"] = joined_bytes(bucket_bytes)
    sent, all_reduce, reduce_scatter = [], started.start_all_reduce, started.start_reduce_scatter

    def recorded_all_reduce(flat, parts, axis):
        sent.append((StepKind.ALL_REDUCE, flat.nbytes))
        return all_reduce(flat, parts, axis)

    def recorded_reduce_scatter(xs, axis, dims):
        sent.append((StepKind.REDUCE_SCATTER, sum(x.nbytes for x in xs)))
        return reduce_scatter(xs, axis, dims)

    started.start_all_reduce, started.start_reduce_scatter = recorded_all_reduce, recorded_reduce_scatter
    build = read_build(folder)
    runtime = make_runtime(build, rank, torch.device("cpu"))
    module = load_module(folder, build.program_of(rank))
    start = load_weights(None, build, rank, torch.device("cpu"))
    batches = Batches(folder / "data.safetensors", build, rank, torch.device("cpu"))
    for step in (1, 2):
        sent.clear()
        module.train_step(start.weights, start.states, batches.micro_batches(step), step, runtime)
    return sent


@pytest.mark.ranks
@pytest.mark.parametrize(
    "plan",
    [
        "dp=2",
        "dp=2,micro_batches=3",
        "dp=2,zero=1,micro_batches=2",
        "dp=2,zero=2",
        "dp=2,zero=2,micro_batches=2",
        "dp=2,pp=2,schedule=interleaved,micro_batches=2",
        "dp=2,pp=2,schedule=zb-v,zero=1,micro_batches=2",
    ],
)
@pytest.mark.parametrize("bucket_bytes", [3000, 25 * 2**20])
def test_what_is_followed_on_the_program_is_what_ranks_send(plan, bucket_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(bucket, "BUCKET_BYTES", bucket_bytes)
    monkeypatch.setitem(bucket.JOINED_BYTES, "cpu", joined_bytes(bucket_bytes))
    inputs = gpt.example_inputs("tiny", batch=12, **SIZES)
    graph = trace(gpt.build("tiny", **SIZES), inputs, optimizer=AdamW(lr=1e-3))
    ranks = parse_plan(plan).num_devices
    made = compiler.plan(graph, Cluster.local(ranks), plan)
    made.save(tmp_path / "build")
    save_file(inputs, tmp_path / "build" / "data.safetensors")
    sent = run_ranks(sent_in_the_second_step, ranks, tmp_path, tmp_path / "build", bucket_bytes)
    simulated_rows = made.simulate().rows
    for program in made.programs:
        followed = [
            (one.sums[0].step.kind, sum(program.values[i.read].num_bytes for i in one.sums))
            for one in messages_in_order(program)
        ]
        for device in program.devices:
            assert sent[device] == followed
        # with gloo the cores that compute also communicate, so that the program waits
        names = tuple(f"{one.sums[0].step} of {one.sums[0].write}" for one in messages_in_order(program))
        waited = [s for s in simulated_rows[program.row].spans if s.stream is Stream.COMMUNICATION]
        assert sum(span.name.startswith(names) for span in waited) == len(followed)
    alone = [
        num_bytes for kind, num_bytes in sent[0] if kind is StepKind.ALL_REDUCE and num_bytes > bucket_bytes
    ]
    assert alone or bucket_bytes > 3000 or "zero" in plan, "some gradient is larger than a bucket"
