"""Search: branch and bound over the plans of a space; the best by the estimate, then by simulation.

A way to cut layers is priced only when no known plan is as fast as it could be: recomputation and co-shard take no less
time than keeping everything, so their plans are bounded by those without. Plans that are bounded, but for the layers of
their stages, are taken in the order of their bounds, and get their stages by CP-SAT. What is not reached when the best
is found, or when the time is up, is bounded by the least bound left.
"""

import heapq
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf

from superscaler.errors import PlanError
from superscaler.ir.axes import find_axes
from superscaler.ir.graph import Graph, drop_unread
from superscaler.ir.shorten import shorten
from superscaler.planner.cluster import Cluster, Nodes
from superscaler.planner.layers import layers as find_layers
from superscaler.planner.micro_batches import compute_sums_beforehand
from superscaler.planner.passes import find_passes
from superscaler.planner.planner import Planner
from superscaler.planner.recipes.expert_parallelism import expert_axes
from superscaler.search.candidate import FORMS, Candidate, Space, candidates, sample_counts, ways
from superscaler.search.costs import Costs, Prices, find_costs, with_together
from superscaler.search.estimate import least_interlaced_seconds, least_seconds
from superscaler.search.layer_prices import layer_prices, vocabulary_price
from superscaler.search.priced_placement import LayerPrice, weighted_sum
from superscaler.search.stage_cuts import find_cuts, row_bytes
from superscaler.search.way import Form, Way

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
    def reasons(self) -> tuple[str, ...]:
        """Why ways are refused, each reason once, in a line."""
        return tuple(dict.fromkeys(reason.partition("\n")[0] for _, reason in self.refused))

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
        has_passes = max(find_passes(self.graph, self.layers).values(), default=0) > 0
        self.form = Form.PASSES if has_passes else Form.CHAIN
        short = shorten(self.graph, self.layers)
        axes = find_axes(short.graph)
        self._short = replace(short, graph=drop_unread(compute_sums_beforehand(short.graph, axes)))
        self._axes = find_axes(self._short.graph)
        self.batch = self.graph.tensors[self.graph.inputs[0]].shape[0]
        self.has_experts = bool(expert_axes(Planner(self._short.graph, self.cluster, known_axes=self._axes)))
        self._priced: dict[tuple, tuple[LayerPrice, ...] | PlanError] = {}

    @property
    def can_interlace(self) -> bool:
        """Whether there are plans that interlace a pipeline with tasks over a vocabulary."""
        is_asked = any(FORMS.get(schedule) is Form.INTERLACED for schedule in self.space.schedules)
        return is_asked and self._has_vocabulary and self.form is Form.CHAIN

    @cached_property
    def _has_vocabulary(self) -> bool:
        return any(axis.name == "vocab" for dims in self._axes.dims.values() for dim in dims for axis in dim)

    def prices(self, way: Way, samples: int) -> Prices | PlanError:
        """The prices of the layers for micro-batches of so many samples, per run of equal nodes; or why there are none.

        Only the smallest and the largest micro-batches are priced: what lies between takes what lies between.
        """
        least, *_, most = (1, *sample_counts(self.space, way, self.batch))
        share = (samples - least) / (most - least) if most > least else 0.0
        found = []
        for nodes in self.cluster.nodes:
            low, high = self._exact(way, least, nodes), self._exact(way, most, nodes)
            if isinstance(low, PlanError):
                return low
            if isinstance(high, PlanError):
                return high
            pairs = zip(low, high, strict=True)
            found.append(tuple(weighted_sum(pair, (1 - share, share)) for pair in pairs))
        return tuple(found)

    def together(self, candidate: Candidate) -> LayerPrice | PlanError | None:
        """The price of what all rows do together; None: nothing; or why they cannot."""
        if candidate.way.form is not Form.INTERLACED:
            return None
        way = replace(candidate.way, recompute="", co_shard=1)
        rows, count = candidate.pp, candidate.micro_batches
        found = self._once(
            (way, rows, count),
            lambda: (vocabulary_price(self._short, self._axes, self.cluster, way, rows, count),),
        )
        return found if isinstance(found, PlanError) else found[0]

    def _exact(self, way: Way, samples: int, nodes: Nodes) -> tuple[LayerPrice, ...] | PlanError:
        count = self.batch // (samples * way.ep)
        return self._once(
            (way, samples, nodes),
            lambda: layer_prices(self._short, self._axes, self.cluster, nodes, way, count),
        )

    def _once(
        self, key: tuple, price: Callable[[], tuple[LayerPrice, ...]]
    ) -> tuple[LayerPrice, ...] | PlanError:
        if key not in self._priced:
            try:
                self._priced[key] = price()
            except PlanError as error:
                self._priced[key] = error
        return self._priced[key]

    def run(
        self,
        time_limit: float = 60.0,
        more_memory: int = 0,
        within: float = 0.0,
        without: Collection[Candidate] = (),
    ) -> Found:
        """Find the fastest plan.

        Args:
            time_limit: Seconds.
            more_memory: Bytes of each device beyond those of the cluster.
            within: Also find the plans that take longer by no more than this part.
            without: Plans that are known not to do.
        """
        return _Run(self, more_memory, time.monotonic() + time_limit, within, frozenset(without)).run()


@dataclass
class _Run:
    search: Search
    more_memory: int
    deadline: float
    within: float
    without: frozenset[Candidate]

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
        for way in ways(space, search.cluster, space.keeps[0], search.form, search.has_experts):
            self._push(0.0, lambda _, way=way: self._open(way))
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

    def _open(self, way: Way) -> None:
        """Price a way that keeps everything, and bound those that keep less, and interlaced ones, by it."""
        for samples in sample_counts(self.search.space, way, self.search.batch):
            prices = self._price(way, samples)
            if prices is None:
                return
            # what fits is not made faster by keeping less
            needing = self._least(way, samples, prices)
            for recompute, co_shard in self.search.space.keeps[1:]:
                other = replace(way, recompute=recompute, co_shard=co_shard)
                self._push(needing, lambda _, other=other, samples=samples: self._price(other, samples))
            bound = self._least_interlaced(way, samples, prices)
            for recompute, co_shard in self.search.space.keeps if bound < inf else ():
                other = replace(way, recompute=recompute, co_shard=co_shard, form=Form.INTERLACED)
                self._push(bound, lambda _, other=other, samples=samples: self._price(other, samples))

    def _price(self, way: Way, samples: int) -> Prices | None:
        """Price a way and bound its plans; None where the layers cannot be cut so."""
        prices = self.search.prices(way, samples)
        if isinstance(prices, PlanError):
            self.refused[way] = str(prices)
            return None
        for candidate, costs, bound in self._bounded(way, samples, prices):
            if candidate not in self.without and self._may_fit(candidate, costs):
                self._push(bound, lambda b, c=candidate, costs=costs: self._decide(c, costs, b))
        return prices

    def _least(self, way: Way, samples: int, prices: Prices) -> float:
        """The least bound of plans that may not fit, although what stands for the whole step does."""
        least = inf
        for candidate, costs, bound in self._bounded(way, samples, prices):
            standing = _standing(candidate, costs)
            if standing > costs.mean_memory:
                self._note_memory(standing, candidate)
            elif not _surely_fits(candidate, costs):
                least = min(least, bound)
        return least

    def _least_interlaced(self, way: Way, samples: int, prices: Prices) -> float:
        """The least bound of interlaced plans by the prices of chains, of those whose memory may suffice."""
        if not self.search.can_interlace:
            return inf
        own = replace(way, form=Form.INTERLACED)
        return min(
            (
                least_interlaced_seconds(candidate, costs)
                for candidate, costs, _ in self._bounded(own, samples, prices)
                if _standing(candidate, costs) <= costs.mean_memory
            ),
            default=inf,
        )

    def _bounded(self, way: Way, samples: int, prices: Prices) -> Iterator[tuple[Candidate, Costs, float]]:
        """The plans of a way, the costs of their layers alone, and the least they take."""
        search = self.search
        for candidate in candidates(
            search.space, search.cluster, way, search.batch, samples, len(search.layers)
        ):
            costs = find_costs(candidate, prices, search.cluster, more_memory=self.more_memory)
            yield candidate, costs, least_seconds(candidate, costs)

    def _may_fit(self, candidate: Candidate, costs: Costs) -> bool:
        """Whether memory may suffice; notes the least that is needed, evenly spread."""
        flying = min(candidate.micro_batches, (candidate.pp + 1) / 2) if candidate.pp > 1 else 1
        layers = costs.layers[0]
        even = sum(cost.standing + flying * cost.in_flight for cost in layers) / candidate.pp
        largest = max(cost.standing + cost.in_flight + cost.temporary for cost in layers)
        self._note_memory(max(even, largest), candidate)
        return even <= costs.mean_memory and largest <= max(costs.memory_bytes)

    def _note_memory(self, needed: float, candidate: Candidate) -> None:
        if self.least_memory is None or needed < self.least_memory[0]:
            self.least_memory = needed, candidate

    def _decide(self, candidate: Candidate, costs: Costs, bound: float) -> None:
        """Cut the stages of the plan that is bounded least; first price what its rows do together."""
        together = self.search.together(candidate)
        if isinstance(together, PlanError):
            self.refused[candidate.way] = str(together)
            return
        costs = with_together(costs, candidate, together, self.search.cluster)
        tighter = least_seconds(candidate, costs)
        if tighter > bound and self.heap and tighter > self.heap[0][0]:
            self._push(tighter, lambda b: self._cut(candidate, costs, b))
        else:
            self._cut(candidate, costs, max(bound, tighter))

    def _cut(self, candidate: Candidate, costs: Costs, bound: float) -> None:
        left = max(0.1, self.deadline - time.monotonic())
        try:
            cuts = find_cuts(candidate, costs, left, even=self.search.space.even)
        except TimeoutError:
            self.abandoned = min(self.abandoned, bound)
            return
        if cuts is None:
            return
        if cuts.bound < cuts.seconds:
            self.abandoned = min(self.abandoned, max(bound, cuts.bound))
        self.found.append(Estimated(replace(candidate, layers=cuts.layers), cuts.seconds))


def _standing(candidate: Candidate, costs: Costs) -> float:
    """Bytes that stand on each device for the whole step, evenly spread."""
    return sum(cost.standing for cost in costs.layers[0]) / candidate.pp


def _surely_fits(candidate: Candidate, costs: Costs) -> bool:
    """Whether a plan fits, as far as that is known before stages are cut."""
    whole = slice(0, len(costs.layers[0]))
    return candidate.pp == 1 and row_bytes(candidate, 0, [whole], costs) <= costs.memory_bytes[0]
