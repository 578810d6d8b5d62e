"""What tasks take: by hand on a product, in proportion on a transformer, and bytes against the exact account."""

import pytest

from models import mlp
from superscaler.codegen.memory import free_values, peak_memory
from superscaler.ir.graph import Phase
from superscaler.ir.optimizers import SGD
from superscaler.ir.tensor import Role
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster, Link, Nodes
from superscaler.planner.device import Device
from superscaler.planner.plan import make_plan
from superscaler.planner.recipes import parse_plan, recipe
from superscaler.planner.schedules import solved
from superscaler.planner.task_costs import task_costs
from superscaler.planner.task_graph import task_graph
from superscaler.planner.timeline import timeline
from tests.codegen.plans import planned, programs_of, tiny_gpt


def cluster(devices, flops, latency):
    """Devices whose memory and links move bytes in no time."""
    speeds = tuple((kind, flops) for kind in ("float64", "float32", "half"))
    link = Link(1e30, latency)
    return Cluster("made up", (Nodes(1, devices, Device("", 2**40, speeds, 1e30), link, link, devices),))


@pytest.mark.parametrize(
    "how",
    [
        "pp=2,micro_batches=4", "pp=2,schedule=gpipe,micro_batches=4", "pp=2,tp=2,micro_batches=4",
        "dp=2,pp=2,micro_batches=2", "pp=2,micro_batches=4,schedule=zb-h1", "pp=2,micro_batches=4,recompute",
    ],
)  # fmt: skip
def test_memory_is_that_of_the_exact_account(how):
    """Limit and activations together are what the account of every instruction finds, and seldom more."""
    plan = planned(tiny_gpt()[2], how)
    costs = task_costs(plan.materialized, plan.cluster)
    priced = plan.materialized.pipeline.with_costs(costs)
    graph = task_graph(priced, plan.schedule.micro_batches, plan.schedule.splits_backward)
    peaks = timeline(graph, plan.schedule).peaks
    for peak, limit, program in zip(peaks, costs.memory_limit, programs_of(plan), strict=True):
        exact = peak_memory(free_values(program)).total
        assert 0.99 * exact <= plan.cluster.memory_bytes - limit + peak <= 1.2 * exact


def test_a_backward_takes_about_two_forwards_and_weights_about_one():
    how, at_peak = "pp=2,micro_batches=2,schedule=zb-h1", cluster(2, flops=1.0, latency=1e-9)
    plan = make_plan(tiny_gpt()[2], at_peak, recipe(how), how)
    costs = task_costs(plan.materialized, at_peak)
    for forward, backward, weight in zip(costs.forward, costs.backward, costs.weight, strict=True):
        assert 0.3 * forward < weight < 1.5 * forward
        assert forward < backward < 3 * forward
    whole = planned(tiny_gpt()[2], "pp=2,micro_batches=2")
    together = task_costs(whole.materialized, at_peak)
    for number in range(2):
        assert together.weight[number] == 0
        assert together.backward[number] == pytest.approx(costs.backward[number] + costs.weight[number])


def test_messages_take_their_latency_between_tasks_and_nothing_within():
    plan = make_plan(tiny_gpt()[2], cluster(2, flops=1e30, latency=1.0), recipe("pp=2,micro_batches=2"), "")
    costs = task_costs(plan.materialized, plan.cluster)
    ways = [plan.materialized.events[phase] for phase in (Phase.FORWARD, Phase.BACKWARD)]
    crossing = max(sum(len(plan.materialized.meshes_of(event)) == 2 for event in events) for events in ways)
    assert costs.latency == {(0, 1): pytest.approx(crossing)}
    assert max(*costs.forward, *costs.backward) < 1e-9


def test_half_the_work_per_device_takes_half_the_time():
    costs = []
    for how in ("none", "dp=2"):
        fast = cluster(parse_plan(how).num_devices, flops=1.0, latency=1e-9)
        plan = make_plan(tiny_gpt()[2], fast, recipe(how), how)
        costs.append(task_costs(plan.materialized, plan.cluster))
    assert costs[0].forward[0] == pytest.approx(2 * costs[1].forward[0], rel=0.01)
    assert costs[0].backward[0] == pytest.approx(2 * costs[1].backward[0], rel=0.01)


def test_a_product_takes_two_operations_per_point():
    graph = trace(mlp.build("tiny"), mlp.example_inputs("tiny"), optimizer=SGD())
    plan = make_plan(graph, cluster(1, flops=1.0, latency=1e-9), recipe("none"), "")
    products = [operator for operator in graph.operators if operator.kind == "linear"]
    flops = sum(
        2 * graph.tensors[one.writes[0]].num_elements * graph.tensors[one.reads[0]].shape[-1]
        for one in products
    )
    assert flops <= task_costs(plan.materialized, plan.cluster).forward[0] <= 1.2 * flops


def test_a_solved_plan_keeps_to_the_memory_it_is_given():
    def script(p):
        for layers, device in zip(p.split_layers(2), p.cluster.devices, strict=True):
            p.assign(layers, [device])
        p.order(solved(4, memory=limit))

    graph = tiny_gpt()[2]
    free = planned(graph, "pp=2,micro_batches=4,schedule=zb-h1")
    one = max(task_costs(free.materialized, free.cluster).activation)
    limit = 3 * one
    plan = make_plan(graph, Cluster.local(2), script, "solved")
    assert plan.schedule.name.startswith("solved")
    priced = plan.materialized.pipeline.with_costs(task_costs(plan.materialized, plan.cluster))
    peaks = timeline(task_graph(priced, 4, True), plan.schedule).peaks
    assert 0 < max(peaks) <= limit
    assert {task.phase for row in plan.schedule.rows for task in row} == {
        Phase.FORWARD,
        Phase.BACKWARD,
        Phase.WEIGHT,
    }


def test_what_lasts_is_not_for_activations():
    plan = planned(tiny_gpt()[2], "pp=2,micro_batches=4")
    limits = task_costs(plan.materialized, plan.cluster).memory_limit
    stored = sum(tensor.num_bytes for tensor in plan.graph.of_role(Role.PARAMETER))
    assert sum(plan.cluster.memory_bytes - limit for limit in limits) > 3 * stored, "states and gradients too"
