"""Stage cuts: how many layers each stage gets, by CP-SAT, so that the step is shortest and memory suffices.

A stage is a run of layers, so it is known by where it ends; its cost is a difference of two sums over layers from the
first, which are elements of tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from superscaler.search.candidate import Candidate
from superscaler.search.estimate import BUBBLES, LayerCost, in_flight, step_seconds
from superscaler.search.solver import Model

RESOLUTION = 20_000
"""Units of time that the work of all layers on a micro-batch is counted in."""
SHARES = 6
"""All parts of a bubble that schedules leave are so many of it."""
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Cuts:
    """The best cuts found, and what is proved of them."""

    layers: tuple[int, ...]
    seconds: float
    bound: float
    """No cuts take less, by the estimate."""


def rows_of(candidate: Candidate) -> list[list[int]]:
    """The stages that each row of devices hosts."""
    p = candidate.pp
    if candidate.stages == p:
        return [[row] for row in range(p)]
    return [[row, 2 * p - 1 - row if candidate.schedule == "zb-v" else p + row] for row in range(p)]


def row_bytes(candidate: Candidate, row: int, costs: Sequence[LayerCost]) -> float:
    """What a row that hosts these layers holds on each device."""
    flying = in_flight(candidate, row)
    temporary = max(cost.temporary for cost in costs)
    return sum(cost.standing + flying * cost.in_flight for cost in costs) + temporary


def find_cuts(
    candidate: Candidate, costs: Sequence[LayerCost], memory_bytes: int, time_limit: float
) -> Cuts | None:
    """The layers of each stage; None where no cuts fit in memory.

    Args:
        candidate: A plan.
        costs: Of its layers.
        memory_bytes: Of one device.
        time_limit: Seconds for the solver.

    Raises:
        TimeoutError: Nothing was found in the time.
    """
    if candidate.pp == 1:
        fits = row_bytes(candidate, 0, costs) <= memory_bytes
        seconds = step_seconds(candidate, [sum(c.task for c in costs)], [sum(c.step for c in costs)], 0.0)
        return Cuts((), seconds, seconds) if fits else None
    return _Cutting(candidate, costs, memory_bytes).solve(time_limit)


@dataclass
class _Cutting:
    candidate: Candidate
    costs: Sequence[LayerCost]
    memory_bytes: int

    def solve(self, time_limit: float) -> Cuts | None:
        costs, candidate = self.costs, self.candidate
        unit = sum(cost.task for cost in costs) / RESOLUTION
        model = Model()
        count, stages = len(costs), candidate.stages
        ends = [model.integer(stage + 1, count - (stages - stage - 1)) for stage in range(stages - 1)]
        for one, other in pairwise(ends):
            model.add(one + 1 <= other)
        bounds = [0, *ends, count]
        tasks = self._sums(model, bounds, [round(cost.task / unit) for cost in costs])
        steps = self._sums(model, bounds, [round(cost.step / unit) for cost in costs])
        standing = self._sums(model, bounds, [-(-cost.standing // MIB) for cost in costs])
        flying = self._sums(model, bounds, [-(-cost.in_flight // MIB) for cost in costs])
        temporary = -(-max(cost.temporary for cost in costs) // MIB)
        paces: list[Any] = []
        slowest, last = model.integer(0, 2 * RESOLUTION), model.integer(0, 10**9)
        for row, hosted in enumerate(rows_of(candidate)):
            paces.append(model.integer(0, 2 * RESOLUTION))
            model.add(paces[-1] <= slowest)
            for stage in hosted:  # which take turns, so that the slower sets the pace
                model.add(len(hosted) * tasks[stage] <= paces[-1])
            model.add(sum(steps[stage] for stage in hosted) <= last)
            twice = round(2 * in_flight(candidate, row))
            held = sum(2 * standing[stage] + twice * flying[stage] for stage in hosted)
            model.add(held <= 2 * (self.memory_bytes // MIB - temporary))
        bubble = round(SHARES * BUBBLES[candidate.schedule])
        part = SHARES * candidate.micro_batches - bubble
        found = model.minimize(part * slowest + bubble * sum(paces) + SHARES * last, time_limit)
        if found is None:
            return None
        chosen = [0, *(found.value(end) for end in ends), count]
        layers = tuple(stop - start for start, stop in pairwise(chosen))
        seconds = self._seconds(layers)
        return Cuts(layers, seconds, seconds - (found.objective - found.bound) * unit / SHARES)

    def _sums(self, model: Model, bounds: Sequence, amounts: Sequence[int]) -> list:
        """Per stage the amounts of its layers."""
        sums = [0, *accumulate(amounts)]
        reached = [sums[b] if isinstance(b, int) else model.element(sums, b) for b in bounds]
        return [stop - start for start, stop in pairwise(reached)]

    def _seconds(self, layers: Sequence[int]) -> float:
        """The estimate, unrounded."""
        stops = list(accumulate(layers))
        stage = [self.costs[stop - own : stop] for stop, own in zip(stops, layers, strict=True)]
        rows = rows_of(self.candidate)
        tasks = [len(hosted) * max(sum(cost.task for cost in stage[i]) for i in hosted) for hosted in rows]
        steps = [sum(cost.step for i in hosted for cost in stage[i]) for hosted in rows]
        hand_on = max(cost.hand_on for cost in self.costs)
        return step_seconds(self.candidate, tasks, steps, hand_on)
