"""Stage cuts: how many layers each stage gets, by CP-SAT, so that the step is shortest and memory suffices.

A stage is a run of layers, so it is known by where it ends; its cost is a difference of two sums over layers from the
first, which are elements of tables. Rows of faster devices get more layers: every kind of row has tables of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from superscaler.search.candidate import Candidate
from superscaler.search.costs import Costs, LayerCost
from superscaler.search.estimate import BUBBLES, in_flight, rounds, step_seconds
from superscaler.search.solver import Model

RESOLUTION = 20_000
"""Units of time that the work of all layers on a micro-batch is counted in, and of memory that a device has."""
SHARES = 60
"""Parts of a bubble that are counted in."""


@dataclass(frozen=True, slots=True)
class Cuts:
    """The best cuts found, and what is proved of them."""

    layers: tuple[int, ...]
    seconds: float
    bound: float
    """No cuts take less, by the estimate."""


def row_bytes(candidate: Candidate, row: int, hosted: Sequence[slice], costs: Costs) -> float:
    """What a row holds on each device at most.

    Where its devices run one stage, the backward of a layer finds the activations of the layers before it, while those
    behind it are gone; of the micro-batches besides, all are there.

    Args:
        candidate: A plan.
        row: Of its devices.
        hosted: The layers of each stage that the row hosts.
        costs: Of all layers.
    """
    layers, together = costs.layers[costs.kinds[row]], costs.together
    flying = in_flight(candidate, row)
    own = [cost for stage in hosted for cost in layers[stage]]
    held = sum(cost.standing + flying * cost.in_flight for cost in own)
    held += together.standing + flying * together.in_flight
    if len(hosted) > 1 or candidate.parts_backward:
        return held + max(together.temporary, *(cost.temporary for cost in layers))
    (stage,) = hosted
    peak = _peaks(layers)[stage.stop] - sum(cost.in_flight for cost in layers[: stage.stop])
    return held + max(together.temporary, peak)


def _peaks(layers: Sequence[LayerCost]) -> list[int]:
    """Per number of layers from the first, the most that their backwards hold of one micro-batch; at least 0."""
    reached = accumulate(cost.in_flight for cost in layers)
    most = (before + cost.temporary for before, cost in zip(reached, layers, strict=True))
    return [0, *accumulate(most, max)]


def find_cuts(candidate: Candidate, costs: Costs, time_limit: float, *, even: bool = False) -> Cuts | None:
    """The layers of each stage; None where no cuts fit in memory.

    Args:
        candidate: A plan.
        costs: Of its layers.
        time_limit: Seconds for the solver.
        even: Whether all stages are to have as many.

    Raises:
        TimeoutError: Nothing was found in the time.
    """
    if candidate.pp == 1:
        (layers,) = costs.layers
        fits = row_bytes(candidate, 0, [slice(0, len(layers))], costs) <= costs.memory_bytes[0]
        seconds = step_seconds(candidate, [sum(c.task for c in layers)], [sum(c.step for c in layers)], costs)
        return Cuts((), seconds, seconds) if fits else None
    cutting = _Cutting(candidate, costs)
    return cutting.even() if even else cutting.solve(time_limit)


@dataclass
class _Cutting:
    candidate: Candidate
    costs: Costs

    def __post_init__(self) -> None:
        self.count = len(self.costs.layers[0])
        totals = [sum(cost.task for cost in layers) for layers in self.costs.layers]
        self.unit = totals[0] / RESOLUTION
        self.bytes = max(1, max(self.costs.memory_bytes) // RESOLUTION)
        """Of memory, that are one unit."""
        self.most = round(2 * max(totals) / self.unit) + self.count
        """Of the work of a row on a micro-batch, in units."""

    def solve(self, time_limit: float) -> Cuts | None:
        costs, candidate, model = self.costs, self.candidate, Model()
        stages = candidate.stages
        ends = [model.integer(stage + 1, self.count - (stages - stage - 1)) for stage in range(stages - 1)]
        for one, other in pairwise(ends):
            model.add(one + 1 <= other)
        sums = [self._sums(model, [0, *ends, self.count], layers) for layers in costs.layers]
        paces: list[Any] = []
        slowest, last = model.integer(0, self.most), model.integer(0, 10**9)
        for row, (hosted, kind) in enumerate(zip(candidate.rows, costs.kinds, strict=True)):
            own = sums[kind]
            paces.append(model.integer(0, self.most))
            model.add(paces[-1] <= slowest)
            for stage in hosted:  # which take turns, so that the slower sets the pace
                model.add(len(hosted) * own.tasks[stage] <= paces[-1])
            model.add(sum(own.steps[stage] for stage in hosted) <= last)
            twice = round(2 * in_flight(candidate, row))
            held = sum(2 * own.standing[stage] + twice * own.flying[stage] for stage in hosted)
            for most in self._besides(own, hosted, kind):
                model.add(held + 2 * most <= self._room(row, kind))
        bubble = round(SHARES * BUBBLES[candidate.schedule] * costs.refill_share)
        part = round(SHARES * rounds(candidate, costs)) - bubble
        found = model.minimize(part * slowest + bubble * sum(paces) + SHARES * last, time_limit)
        if found is None:
            return None
        chosen = [0, *(found.value(end) for end in ends), self.count]
        layers = tuple(stop - start for start, stop in pairwise(chosen))
        seconds = self._seconds(layers)
        return Cuts(layers, seconds, seconds - (found.objective - found.bound) * self.unit / SHARES)

    def even(self) -> Cuts | None:
        """As many layers for each stage."""
        layers = (self.count // self.candidate.stages,) * self.candidate.stages
        for row, own in enumerate(self._hosted(layers)):
            held = row_bytes(self.candidate, row, own, self.costs)
            if held > self.costs.memory_bytes[self.costs.kinds[row]]:
                return None
        seconds = self._seconds(layers)
        return Cuts(layers, seconds, seconds)

    def _room(self, row: int, kind: int) -> int:
        """Twice the memory for layers on a row, in units."""
        together = self.costs.together
        shared = together.standing + in_flight(self.candidate, row) * together.in_flight
        return int(2 * ((self.costs.memory_bytes[kind] - shared) // self.bytes))

    def _besides(self, own: "_Sums", hosted: Sequence[int], kind: int) -> list[Any]:
        """What a row may hold at most besides what stands and flies, in units: see `row_bytes`."""
        together = -(-self.costs.together.temporary // self.bytes)
        if len(hosted) > 1 or self.candidate.parts_backward:
            largest = max(cost.temporary for cost in self.costs.layers[kind])
            return [max(together, -(-largest // self.bytes))]
        return [together, own.besides[hosted[0]]]

    def _sums(self, model: Model, bounds: Sequence, layers: Sequence[LayerCost]) -> "_Sums":
        """Per stage what its layers take together."""

        def at_bounds(table: Sequence[int]) -> list:
            return [table[b] if isinstance(b, int) else model.element(table, b) for b in bounds]

        def summed(amounts: Sequence[int]) -> list:
            return [stop - start for start, stop in pairwise(at_bounds([0, *accumulate(amounts)]))]

        flying = [0, *accumulate(cost.in_flight for cost in layers)]
        besides = [most - before for most, before in zip(_peaks(layers), flying, strict=True)]
        return _Sums(
            summed([round(cost.task / self.unit) for cost in layers]),
            summed([round(cost.step / self.unit) for cost in layers]),
            summed([-(-cost.standing // self.bytes) for cost in layers]),
            summed([-(-cost.in_flight // self.bytes) for cost in layers]),
            at_bounds([-(-most // self.bytes) for most in besides])[1:],
        )

    def _hosted(self, layers: Sequence[int]) -> list[list[slice]]:
        """Per row, of each stage it hosts the layers."""
        stops = list(accumulate(layers))
        spans = [slice(stop - own, stop) for stop, own in zip(stops, layers, strict=True)]
        return [[spans[stage] for stage in hosted] for hosted in self.candidate.rows]

    def _seconds(self, layers: Sequence[int]) -> float:
        """The estimate, unrounded."""
        kinds = self.costs.kinds
        rows = [
            [self.costs.layers[kind][stage] for stage in hosted]
            for hosted, kind in zip(self._hosted(layers), kinds, strict=True)
        ]
        tasks = [len(stages) * max(sum(cost.task for cost in stage) for stage in stages) for stages in rows]
        steps = [sum(cost.step for stage in stages for cost in stage) for stages in rows]
        return step_seconds(self.candidate, tasks, steps, self.costs)


@dataclass(frozen=True, slots=True)
class _Sums:
    """Per stage, what its layers take together, in units of time and memory."""

    tasks: list
    steps: list
    standing: list
    flying: list
    besides: list
    """The most that its backwards hold besides."""
