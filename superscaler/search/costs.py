"""Costs: what the layers of a model cost on each row of devices under one candidate."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from superscaler.planner.cluster import Cluster
from superscaler.planner.collective_cost import collective_seconds
from superscaler.planner.device_group import DeviceGroup, concurrent_groups
from superscaler.planner.transport import Collective, Transport
from superscaler.search.candidate import Candidate
from superscaler.search.priced_placement import LayerPrice, slowest


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What a layer costs on each device of a row under one candidate."""

    task: float
    """Seconds of forward and backward of a micro-batch, of all passes."""
    refill: float
    """Of the task, what filling and draining a pipeline takes: the last pass, there and back."""
    longer: float
    """Of the task, the longer of the last pass and the backward."""
    step: float
    """Seconds once per step."""
    standing: int
    """Bytes for the whole step."""
    in_flight: int
    """Bytes per micro-batch in flight."""
    temporary: int
    hand_on: float


NOTHING = LayerCost(0.0, 0.0, 0.0, 0.0, 0, 0, 0, 0.0)


@dataclass(frozen=True, slots=True)
class Costs:
    """What all layers cost on every row; rows of like devices share a kind."""

    layers: tuple[tuple[LayerCost, ...], ...]
    """Per kind of row, of all layers of the model."""
    memory_bytes: tuple[int, ...]
    """Per kind of row, of each device."""
    kinds: tuple[int, ...]
    """Per row its kind."""
    together: LayerCost = NOTHING
    """What all rows do together, beside the layers."""

    @property
    def hand_on(self) -> float:
        """Seconds of a message between stages."""
        return max(cost.hand_on for layers in self.layers for cost in layers)

    @property
    def mean_memory(self) -> float:
        """Bytes of a device, of the average row."""
        return sum(self.memory_bytes[kind] for kind in self.kinds) / len(self.kinds)

    @property
    def refill_share(self) -> float:
        """Which part of the tasks fills and drains a pipeline."""
        return self._share("refill")

    @property
    def longer_share(self) -> float:
        """Which part of the tasks is the longer of forward and backward."""
        return self._share("longer")

    def _share(self, part: str) -> float:
        tasks = sum(cost.task for cost in self.layers[0])
        return sum(getattr(cost, part) for cost in self.layers[0]) / tasks if tasks else 1.0


Prices = Sequence[Sequence[LayerPrice]]
"""Per run of equal nodes of a cluster, of all layers."""


def find_costs(
    candidate: Candidate,
    prices: Prices,
    cluster: Cluster,
    more_memory: int = 0,
) -> Costs:
    """The costs of every layer with data parallelism; layers of one price have one cost.

    Args:
        candidate: A plan.
        prices: Of its way.
        cluster: All its devices are used.
        more_memory: Bytes of each device beyond those of the cluster.
    """
    size = cluster.num_devices // candidate.pp
    rows = [range(row * size, (row + 1) * size) for row in range(candidate.pp)]
    groups = [cluster.runs(row[0], row[-1]) for row in rows]
    found = list(dict.fromkeys(groups))
    layers, memory = [], []
    for runs in found:
        row = rows[groups.index(runs)]
        speed = _speed_of(candidate, cluster, row[0])
        layers.append(_layer_costs(candidate, [prices[run] for run in runs], speed))
        memory.append(min(cluster.nodes[run].device.memory_bytes for run in runs) + more_memory)
    return Costs(tuple(layers), tuple(memory), tuple(map(found.index, groups)))


def with_together(costs: Costs, candidate: Candidate, price: LayerPrice | None, cluster: Cluster) -> Costs:
    """The costs with those of what all rows do together; None: nothing."""
    if price is None:
        return costs
    return replace(costs, together=_cost(candidate, price, _speed_of(candidate, cluster, 0)))


def _layer_costs(
    candidate: Candidate,
    prices: Sequence[Sequence[LayerPrice]],
    speed: "_Speed",
) -> tuple[LayerCost, ...]:
    """Of layers that devices of one or several kinds run together."""
    joined = prices[0] if len(prices) == 1 else tuple(map(slowest, zip(*prices, strict=True)))
    costs = {price: _cost(candidate, price, speed) for price in set(joined)}
    return tuple(costs[price] for price in joined)


def _cost(candidate: Candidate, price: LayerPrice, speed: "_Speed") -> LayerCost:
    zero, dp = candidate.zero, candidate.dp
    forward, last, backward, step = price.forward, price.last_forward, price.backward, price.update
    parameters, states, gradients = price.parameters, price.states, price.gradients
    # sums of gradients go on beside the backward of other layers, in the last micro-batch
    if zero == 0:
        step += speed.beside(backward, speed(Collective.ALL_REDUCE, gradients)) - backward
    else:
        step /= dp
        states = -(-states // dp)
    if zero == 1:
        step += speed.beside(backward, speed(Collective.REDUCE_SCATTER, gradients)) - backward
        step += speed(Collective.ALL_GATHER, parameters)
    if zero == 2:
        backward = speed.beside(backward, speed(Collective.REDUCE_SCATTER, gradients))
        step += speed(Collective.ALL_GATHER, parameters)
    if zero == 3:
        gather = speed(Collective.ALL_GATHER, parameters)
        forward, last = speed.beside(forward, gather), speed.beside(last, gather)
        backward = speed.beside(backward, gather + speed(Collective.REDUCE_SCATTER, gradients))
        parameters = -(-parameters // dp)
    if zero >= 2:
        gradients = -(-gradients // dp)
    temporary = price.temporary + (2 * price.parameters if zero == 3 else 0)
    standing = parameters + states + gradients
    return LayerCost(
        forward + backward, last + backward, max(last, backward), step,
        standing, price.activations, temporary, price.hand_on,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Speed:
    """Of collectives over the replicas of a stage, whose members are apart by the devices of a way."""

    groups: tuple[DeviceGroup, ...]
    transport: Transport

    def __call__(self, collective: Collective, num_bytes: float) -> float:
        """Seconds."""
        return max(collective_seconds(collective, num_bytes, group, self.transport) for group in self.groups)

    def beside(self, computing: float, communicating: float) -> float:
        """Seconds of both, one beside the other where that can be."""
        return computing + communicating if self.transport.takes_cores else max(computing, communicating)


def _speed_of(candidate: Candidate, cluster: Cluster, first: int) -> _Speed:
    """Of the row whose first device is given."""
    groups = _replica_groups(first, candidate.way.num_devices, candidate.dp, cluster)
    return _Speed(groups, cluster.transport)


@cache
def _replica_groups(first: int, stride: int, count: int, cluster: Cluster) -> tuple[DeviceGroup, ...]:
    row = range(first, first + stride * count)
    return concurrent_groups((tuple(row[member::stride]) for member in range(stride)), cluster)
