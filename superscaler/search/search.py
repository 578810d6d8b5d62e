"""Search: branch and bound over the plans of a space; the best by the estimate, then by simulation.

A way to cut layers is priced only when no known plan is as fast as it could be: recomputation and co-shard take no less
time than keeping everything, so their plans are bounded by those without. Plans that are bounded, but for the layers of
their stages, are taken in the order of their bounds, and get their stages by CP-SAT. What is not reached when the best
is found, or when the time is up, is bounded by the least bound left.
"""

import heapq
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import inf

from superscaler.errors import PlanError
from superscaler.ir.axes import find_axes
from superscaler.ir.graph import Graph, drop_unread
from superscaler.ir.shorten import shorten
from superscaler.planner.cluster import Cluster
from superscaler.planner.layers import layers as find_layers
from superscaler.planner.micro_batches import compute_sums_beforehand
from superscaler.search.candidate import Candidate, Space, candidates, sample_counts, ways
from superscaler.search.estimate import LayerCost, layer_costs, least_seconds
from superscaler.search.layer_prices import LayerPrice, Way, between, layer_prices
from superscaler.search.stage_cuts import find_cuts

KEPT = 64
"""Plans of which the search remembers the estimate."""


@dataclass(frozen=True, slots=True)
class Estimated:
    """A plan with its layers, and what it is estimated to take."""

    candidate: Candidate
    seconds: float


@dataclass(frozen=True)
class Found:
    """What a search found."""

    plans: tuple[Estimated, ...]
    """The fastest by the estimate first."""
    bound: float
    """No plan of the space takes less, by the estimate; infinite where it is known that none fits."""
    refused: tuple[tuple[Way, str], ...]
    """Ways in which the model cannot be cut, and why."""
    least_memory: tuple[float, Candidate] | None
    """The least that a device needs in any plan looked at, in bytes, and that plan."""

    @property
    def gap(self) -> float:
        """By which part of it the best plan may be longer than need be."""
        return 1 - self.bound / self.plans[0].seconds if self.plans else inf


@dataclass
class Search:
    """A model on a cluster, whose layers are priced once.

    Args:
        graph: One training step.
        cluster: All its devices are used.
        space: Which plans may be chosen.
    """

    graph: Graph
    cluster: Cluster
    space: Space = field(default_factory=Space)

    def __post_init__(self) -> None:
        axes = find_axes(self.graph)
        self.layers = list(find_layers(self.graph, axes, len(self.graph.operators)))
        short = shorten(self.graph, self.layers)
        axes = find_axes(short.graph)
        self._short = replace(short, graph=drop_unread(compute_sums_beforehand(short.graph, axes)))
        self._axes = find_axes(self._short.graph)
        self.batch = self.graph.tensors[self.graph.inputs[0]].shape[0]
        self._priced: dict[tuple[Way, int], tuple[LayerPrice, ...] | PlanError] = {}

    def prices(self, way: Way, samples: int) -> tuple[LayerPrice, ...] | PlanError:
        """The prices of the layers for micro-batches of so many samples; or why they cannot be cut this way.

        Only the smallest and the largest micro-batches are priced: what lies between takes what lies between.
        """
        least, *_, most = (1, *sample_counts(self.space, self.batch))
        low, high = self._exact(way, least), self._exact(way, most)
        if isinstance(low, PlanError) or isinstance(high, PlanError):
            return low if isinstance(low, PlanError) else high
        share = (samples - least) / (most - least) if most > least else 0.0
        return tuple(between(one, other, share) for one, other in zip(low, high, strict=True))

    def _exact(self, way: Way, samples: int) -> tuple[LayerPrice, ...] | PlanError:
        key = way, samples
        if key not in self._priced:
            try:
                nodes = self.cluster.nodes[0]
                count = self.batch // samples
                self._priced[key] = layer_prices(self._short, self._axes, self.cluster, nodes, way, count)
            except PlanError as error:
                self._priced[key] = error
        return self._priced[key]

    def run(self, time_limit: float = 60.0, memory_bytes: int | None = None, within: float = 0.0) -> Found:
        """Find the fastest plan.

        Args:
            time_limit: Seconds.
            memory_bytes: Of a device, if not the cluster's.
            within: Also find the plans that take longer by no more than this part.
        """
        return _Run(
            self, memory_bytes or self.cluster.memory_of(), time.monotonic() + time_limit, within
        ).run()


@dataclass
class _Run:
    search: Search
    memory_bytes: int
    deadline: float
    within: float

    def __post_init__(self) -> None:
        self.heap: list[tuple[float, int, Callable[[float], object]]] = []
        self.pushed = 0
        self.found: list[Estimated] = []
        self.refused: dict[Way, str] = {}
        self.least_memory: tuple[float, Candidate] | None = None
        self.abandoned = inf
        """The least bound of what could not be decided."""

    def run(self) -> Found:
        """Take what is bounded least until it cannot be better than what is known."""
        space, search = self.search.space, self.search
        most = sample_counts(space, search.batch)[-1]
        for way in ways(space, search.cluster, space.keeps[0]):
            self._push(0.0, lambda _, way=way: self._open(way, most))
        best = inf
        while self.heap and self.heap[0][0] < best * (1 + self.within) and time.monotonic() < self.deadline:
            bound, _, action = heapq.heappop(self.heap)
            action(bound)
            best = min((plan.seconds for plan in self.found), default=inf)
        bound = min(best, self.abandoned, self.heap[0][0] if self.heap else inf)
        plans = sorted(self.found, key=lambda plan: (plan.seconds, str(plan.candidate)))[:KEPT]
        return Found(tuple(plans), bound, tuple(self.refused.items()), self.least_memory)

    def _push(self, bound: float, action: Callable[[float], object]) -> None:
        self.pushed += 1
        heapq.heappush(self.heap, (bound, self.pushed, action))

    def _open(self, way: Way, samples: int) -> None:
        """Price a way that keeps everything; smaller micro-batches, and ways that keep less, are bounded by it."""
        prices = self._price(way, samples)
        smaller = [count for count in sample_counts(self.search.space, self.search.batch) if count < samples]
        if prices is None:
            if smaller and way not in self.refused:
                self._push(0.0, lambda _: self._open(way, smaller[-1]))
            return
        if smaller:
            # a sample takes no less in a smaller micro-batch
            share = smaller[-1] / samples
            scaled = [replace(p, forward=share * p.forward, backward=share * p.backward) for p in prices]
            self._push(self._least(way, smaller[-1], scaled), lambda _: self._open(way, smaller[-1]))
        for recompute, co_shard in self.search.space.keeps[1:]:
            other = replace(way, recompute=recompute, co_shard=co_shard)
            self._push(self._least(way, samples, prices), lambda _, other=other: self._price(other, samples))

    def _price(self, way: Way, samples: int) -> tuple[LayerPrice, ...] | None:
        """Price a way and bound its plans; None where the layers cannot be cut so."""
        prices = self.search.prices(way, samples)
        if isinstance(prices, PlanError):
            self.refused[way] = str(prices)
            return None
        for candidate, costs, bound in self._bounded(way, samples, prices):
            if self._may_fit(candidate, costs):
                self._push(bound, lambda b, c=candidate, costs=costs: self._cut(c, costs, b))
        return prices

    def _least(self, way: Way, samples: int, prices: Sequence[LayerPrice]) -> float:
        """The least bound of plans of which what stands for the whole step fits in memory."""
        return min(
            (
                bound
                for candidate, costs, bound in self._bounded(way, samples, prices)
                if sum(cost.standing for cost in costs) / candidate.pp <= self.memory_bytes
            ),
            default=inf,
        )

    def _bounded(
        self, way: Way, samples: int, prices: Sequence[LayerPrice]
    ) -> Iterator[tuple[Candidate, tuple[LayerCost, ...], float]]:
        """The plans of a way, the costs of their layers, and the least they take."""
        search = self.search
        for candidate in candidates(
            search.space, search.cluster, way, search.batch, samples, len(search.layers)
        ):
            costs = layer_costs(candidate, prices, search.cluster)
            yield candidate, costs, least_seconds(candidate, costs)

    def _may_fit(self, candidate: Candidate, costs: Sequence[LayerCost]) -> bool:
        """Whether memory may suffice; notes the least that is needed, evenly spread."""
        flying = min(candidate.micro_batches, (candidate.pp + 1) / 2) if candidate.pp > 1 else 1
        needed = sum(cost.standing + flying * cost.in_flight for cost in costs) / candidate.pp
        needed = max(needed, *(cost.standing + cost.in_flight + cost.temporary for cost in costs))
        if self.least_memory is None or needed < self.least_memory[0]:
            self.least_memory = needed, candidate
        return needed <= self.memory_bytes

    def _cut(self, candidate: Candidate, costs: Sequence[LayerCost], bound: float) -> None:
        left = max(0.1, self.deadline - time.monotonic())
        try:
            cuts = find_cuts(candidate, costs, self.memory_bytes, left)
        except TimeoutError:
            self.abandoned = min(self.abandoned, bound)
            return
        if cuts is None:
            return
        if cuts.bound < cuts.seconds:
            self.abandoned = min(self.abandoned, max(bound, cuts.bound))
        self.found.append(Estimated(replace(candidate, layers=cuts.layers), cuts.seconds))
