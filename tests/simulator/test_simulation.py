"""Simulated steps of whole plans: what they must add up to, and what must make them slower."""

import json
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import torch

from models import gpt
from superscaler import compiler
from superscaler.ir.optimizers import AdamW
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster
from superscaler.planner.prices import Prices
from superscaler.planner.recipes import parse_plan
from superscaler.simulator.instruction_seconds import InstructionPrices
from superscaler.simulator.replay import Stream
from superscaler.simulator.trace_events import trace_events

PLANS = (
    "none", "dp=2", "dp=2,zero=3,micro_batches=2", "tp=2,sp", "dp=2,offload=optimizer",
    "pp=2,schedule=1f1b,micro_batches=4", "pp=2,schedule=interleaved,micro_batches=4",
    "pp=2,schedule=zb-v,micro_batches=4", "pp=2,schedule=bidirectional,micro_batches=4",
    "pp=2,schedule=interlaced,micro_batches=4", "dp=2,tp=2,pp=2,zero=1,recompute=layers,micro_batches=2",
)  # fmt: skip


@cache
def graph():
    torch.manual_seed(0)
    sizes = {"layers": 4, "width": 16, "heads": 4, "seq": 8, "vocab": 32}
    batch = gpt.example_inputs("tiny", batch=8, **sizes)
    return trace(gpt.build("tiny", **sizes), batch, optimizer=AdamW(lr=1e-3))


def planned(plan, cluster=None):
    return compiler.plan(graph(), cluster or Cluster.local(parse_plan(plan).num_devices), plan)


@pytest.mark.parametrize("plan", PLANS)
def test_the_parts_of_each_row_add_up_to_the_step_and_streams_do_one_thing_at_a_time(plan):
    simulation = planned(plan).simulate()
    for row in simulation.rows:
        assert row.computing + row.exposed + row.waiting == pytest.approx(simulation.step_seconds)
        assert min(row.computing, row.exposed, row.waiting) >= -1e-12
        for stream in Stream:
            ends = [(span.start, span.end) for span in row.spans if span.stream is stream]
            assert all(one[1] <= other[0] + 1e-12 for one, other in pairwise(ends))


def test_a_step_can_be_simulated_with_fused_kernels_or_with_scores_that_are_stored():
    plan = planned("none")
    seconds = plan.simulate().step_seconds
    assert plan.simulate(is_fused=True).step_seconds < seconds
    assert plan.simulate(stores_scores=True).step_seconds != seconds
    assert plan.simulate() is plan.simulate()


@pytest.mark.parametrize("plan", ["none", "micro_batches=4", "recompute=layers"])
def test_one_device_takes_the_sum_of_all_its_instructions(plan):
    compiled = planned(plan)
    (program,) = compiled.programs
    seconds = InstructionPrices(Prices(compiled.placed, compiled.cluster)).seconds
    times = {part: program.micro_batches if part.phase.is_repeated else 1 for part in program.bodies}
    total = sum(times[part] * seconds(program, instruction) for part, instruction in program.instructions())
    assert compiled.simulate().step_seconds == pytest.approx(total)


@pytest.mark.parametrize("plan", ["dp=2", "dp=2,zero=3", "tp=2", "pp=2,schedule=1f1b,micro_batches=4"])
def test_slower_links_make_a_step_longer_and_nothing_else(plan):
    fast, slow = Cluster.local(2), Cluster.local(2)
    node = slow.nodes[0]
    slow = replace(
        slow, nodes=(replace(node, link=replace(node.link, bandwidth=node.link.bandwidth / 1000)),)
    )
    quick, long = planned(plan, fast).simulate(), planned(plan, slow).simulate()
    assert long.step_seconds > 1.1 * quick.step_seconds
    assert [row.computing for row in long.rows] == pytest.approx([row.computing for row in quick.rows])


def test_recomputation_costs_time_and_is_not_counted_as_the_models_work():
    plain, again = planned("none").simulate(), planned("recompute=layers").simulate()
    assert again.step_seconds > plain.step_seconds
    assert again.model_flops == plain.model_flops
    assert again.mfu < plain.mfu


def test_a_row_is_simulated_once_however_many_devices_it_has():
    few, many = (planned(f"dp={count}").simulate() for count in (2, 8))
    assert [len(row.spans) for row in few.rows] == [len(row.spans) for row in many.rows]


def test_the_arithmetic_of_the_model_is_six_times_parameters_times_tokens():
    model = gpt.build("tiny", layers=2, width=64, heads=2, seq=8, vocab=128)
    batch = gpt.example_inputs("tiny", batch=8, layers=2, width=64, heads=2, seq=8, vocab=128)
    plan = compiler.plan(trace(model, batch, optimizer=AdamW()), Cluster.local(1))
    in_products = sum(
        module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear)
    )
    attention = 12 * 2 * 8 * 64 * 64  # 12 x layers x width x tokens x seq
    tokens = 8 * 8
    assert plan.simulate().model_flops == pytest.approx(6 * in_products * tokens + attention * 8 / 8, rel=0.1)


def test_trace_events_are_json_with_a_process_per_row_and_an_event_per_span():
    simulation = planned("pp=2,schedule=1f1b,micro_batches=4").simulate()
    events = json.loads(json.dumps(trace_events(simulation)))["traceEvents"]
    shown = [event for event in events if event["ph"] == "X"]
    assert {event["pid"] for event in shown} == {0, 1}
    assert len(shown) == sum(len(row.spans) for row in simulation.rows)
    assert max(event["ts"] + event["dur"] for event in shown) == pytest.approx(simulation.step_seconds * 1e6)
