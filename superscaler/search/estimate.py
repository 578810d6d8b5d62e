"""Estimates: what a candidate takes by the prices of its layers, before it is planned.

Of p stages and m micro-batches, the slowest stage works m times; the others' work on one micro-batch is the bubble, or
that part of it which the schedule leaves (`BUBBLES`). Then every stage sums its gradients, and updates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from superscaler.planner.cluster import Cluster
from superscaler.planner.collective_cost import collective_seconds
from superscaler.planner.device_group import DeviceGroup, concurrent_groups
from superscaler.planner.transport import Collective
from superscaler.search.candidate import Candidate
from superscaler.search.layer_prices import LayerPrice

BUBBLES = {"gpipe": 1.0, "1f1b": 1.0, "interleaved": 0.5, "zb-h1": 1 / 3, "zb-h2": 0.0, "zb-v": 0.0}
"""Part of the bubble of 1F1B that a schedule leaves (Narayanan et al., arXiv 2104.04473; Zero Bubble, 2401.10241)."""


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What a layer costs on each device under one candidate."""

    task: float
    """Seconds of forward and backward of a micro-batch."""
    step: float
    """Seconds once per step."""
    standing: int
    """Bytes for the whole step."""
    in_flight: int
    """Bytes per micro-batch in flight."""
    temporary: int
    hand_on: float


def layer_costs(
    candidate: Candidate, prices: Sequence[LayerPrice], cluster: Cluster
) -> tuple[LayerCost, ...]:
    """The cost of every layer with data parallelism; layers of one price have one cost."""
    speed = _data_parallel_seconds(candidate, cluster)
    costs = {price: _cost(candidate, price, speed) for price in set(prices)}
    return tuple(costs[price] for price in prices)


def _cost(candidate: Candidate, price: LayerPrice, speed: Callable[[Collective, float], float]) -> LayerCost:
    zero, dp = candidate.zero, candidate.dp
    forward, backward, step = price.forward, price.backward, price.update
    parameters, states, gradients = price.parameters, price.states, price.gradients
    if zero == 0:
        step += speed(Collective.ALL_REDUCE, gradients)
    else:
        step /= dp
        states = -(-states // dp)
    if zero == 1:
        step += speed(Collective.REDUCE_SCATTER, gradients) + speed(Collective.ALL_GATHER, parameters)
    if zero == 2:
        backward = max(backward, speed(Collective.REDUCE_SCATTER, gradients))
        step += speed(Collective.ALL_GATHER, parameters)
    if zero == 3:
        gather = speed(Collective.ALL_GATHER, parameters)
        forward = max(forward, gather)
        backward = max(backward, gather + speed(Collective.REDUCE_SCATTER, gradients))
        parameters = -(-parameters // dp)
    if zero >= 2:
        gradients = -(-gradients // dp)
    temporary = price.temporary + (2 * price.parameters if zero == 3 else 0)
    return LayerCost(
        forward + backward, step, parameters + states + gradients, price.activations, temporary, price.hand_on
    )


def _data_parallel_seconds(candidate: Candidate, cluster: Cluster) -> Callable[[Collective, float], float]:
    """Seconds of a collective over the replicas of a stage, whose members are apart by the devices of a way."""
    groups = _replica_groups(candidate.way.num_devices, candidate.dp, cluster)

    def seconds(collective: Collective, num_bytes: float) -> float:
        return max(collective_seconds(collective, num_bytes, group, cluster.transport) for group in groups)

    return seconds


@cache
def _replica_groups(stride: int, count: int, cluster: Cluster) -> tuple[DeviceGroup, ...]:
    row = range(stride * count)
    return concurrent_groups((tuple(row[first::stride]) for first in range(stride)), cluster)


def in_flight(candidate: Candidate, row: int) -> float:
    """Micro-batches whose activations a row of devices holds at most, by the published figures."""
    p, m = candidate.pp, candidate.micro_batches
    if p == 1:
        return 1
    if candidate.schedule == "interleaved":
        return min(m, (2 * (p - row) - 1 + p) / 2)
    return min(m, p if candidate.schedule == "zb-v" else p - row)


def step_seconds(
    candidate: Candidate, tasks: Sequence[float], steps: Sequence[float], hand_on: float
) -> float:
    """Seconds of a step by the seconds of its rows.

    Args:
        candidate: Its schedule and numbers.
        tasks: Per row, of a micro-batch: stages that share a row take turns, and count as the slowest of them each.
        steps: Per row, once per step.
        hand_on: A message between stages.
    """
    slowest = max(tasks)
    bubble = BUBBLES[candidate.schedule] * (sum(tasks) - slowest)
    messages = 2 * (candidate.stages - 1) * hand_on
    return candidate.micro_batches * slowest + bubble + messages + max(steps)


def least_seconds(candidate: Candidate, costs: Sequence[LayerCost]) -> float:
    """A lower bound on the estimate, whatever layers the stages get."""
    p, total = candidate.pp, sum(cost.task for cost in costs)
    slowest = max(total / p, *(cost.task for cost in costs)) if p > 1 else total
    bubble = BUBBLES[candidate.schedule] * max(0.0, total - slowest)
    messages = 2 * (candidate.stages - 1) * max(cost.hand_on for cost in costs)
    return candidate.micro_batches * slowest + bubble + messages + sum(cost.step for cost in costs) / p
