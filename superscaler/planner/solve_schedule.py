"""The best schedule that can be found for a pipeline, how good it is at most, and how long the search took.

Named schedules and list scheduling give a start; often it meets the lower bound already. If not, small problems are
given to the solver whole. Large ones get a steady state, which is unrolled; then its start and end, and windows in
between, are ordered anew. What is found is never worse than any named schedule that fits.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from time import monotonic

from superscaler.errors import PlanError
from superscaler.ir.graph import Phase
from superscaler.planner.list_scheduling import in_order, list_schedule, one_by_one, squeeze
from superscaler.planner.lower_bound import Bounds
from superscaler.planner.pipeline import Pipeline
from superscaler.planner.schedule import Schedule
from superscaler.planner.schedules import NAMED, interleaved, three_f_one_b
from superscaler.planner.solver import Effort, improve, least_memory, shortest_period
from superscaler.planner.task_graph import TaskGraph, task_graph
from superscaler.planner.timeline import Timeline, timeline

WHOLE_RUNS = 1200
"""Up to so many runs the solver is given the whole problem first."""
WINDOW_RUNS = 300
"""How many runs are ordered anew at once where that is too much."""

CHANCES = 20_000
"""How many runs list scheduling by chance places in all."""


@dataclass(frozen=True)
class SolvedSchedule:
    """A schedule with its proof. Times are in the units of the pipeline's costs."""

    timeline: Timeline
    bound_ticks: int
    seconds: float
    """How long the search took."""
    found_by: str

    @property
    def makespan(self) -> float:
        """How long the schedule takes."""
        return self.timeline.makespan * self.timeline.graph.tick

    @property
    def bound(self) -> float:
        """No schedule takes less."""
        return self.bound_ticks * self.timeline.graph.tick

    @property
    def gap(self) -> float:
        """How much longer than the bound the schedule is, as a fraction of the bound."""
        return self.timeline.makespan / max(1, self.bound_ticks) - 1

    @property
    def is_optimal(self) -> bool:
        """Whether no schedule is shorter."""
        return self.timeline.makespan <= self.bound_ticks

    @property
    def schedule(self) -> Schedule:
        """The order of the tasks, with its proof in its name."""
        proof = "optimal" if self.is_optimal else f"at most {self.gap:.2%} longer than the best"
        return self.timeline.schedule(f"solved: {proof}")


def solve_schedule(
    pipeline: Pipeline,
    micro_batches: int,
    seconds: float = 10.0,
    seed: int = 0,
    splits_backward: bool = True,
) -> SolvedSchedule:
    """Search for the shortest schedule within the memory limits of `pipeline.costs`.

    The same seed finds the same schedule, unless the clock ends the search.

    Raises:
        PlanError: No order fits in memory.
    """
    search = ScheduleSearch(pipeline, micro_batches, seconds, seed, splits_backward)
    steps = [search.named, search.by_rules, search.by_chance, search.whole]
    steps += [search.repeated, search.windows]
    if search.graph.num_runs > WHOLE_RUNS:
        steps.remove(search.whole)
    for step in steps:
        if not search.is_done:
            step()
    return search.result()


def named_schedules(
    pipeline: Pipeline, micro_batches: int, splits_backward: bool
) -> Iterator[tuple[str, Schedule]]:
    """The named schedules that suit the pipeline."""
    makers = {name: entry.make(micro_batches) for name, entry in NAMED.items() if name != "solved"}
    per_row = max(1, pipeline.num_stages // pipeline.num_rows)
    makers["interleaved"] = interleaved(micro_batches, per_row)
    makers["3f1b"] = three_f_one_b(micro_batches, per_row)
    for maker in makers.values():
        if maker.splits_backward and not splits_backward:
            continue
        try:
            schedule = maker(pipeline)
        except PlanError:
            continue
        whole = splits_backward and not maker.splits_backward
        yield maker.name, with_weight_tasks(schedule) if whole else schedule


def with_weight_tasks(schedule: Schedule) -> Schedule:
    """Every whole backward as B and W, one right after the other."""
    rows = tuple(
        tuple(
            part
            for task in row
            for part in (
                (task, replace(task, phase=Phase.WEIGHT)) if task.phase is Phase.BACKWARD else (task,)
            )
        )
        for row in schedule.rows
    )
    return replace(schedule, rows=rows)


class ScheduleSearch:
    """The best schedule so far, and ways to better it; see `solve_schedule`, which goes through them in turn."""

    def __init__(
        self,
        pipeline: Pipeline,
        micro_batches: int,
        seconds: float,
        seed: int = 0,
        splits_backward: bool = True,
    ) -> None:
        self.graph = task_graph(pipeline, micro_batches, splits_backward)
        self.seconds, self.seed, self.splits_backward = seconds, seed, splits_backward
        self.began = monotonic()
        self.bounds = Bounds(self.graph)
        self.bound = self.bounds.makespan
        self.safe_order = self._safe_order()
        self.safe = self.best = self._one_after_the_other(self.graph)
        self.found_by = "one micro-batch after the other"

    def result(self) -> SolvedSchedule:
        """What has been found."""
        return SolvedSchedule(self.best, self.bound, monotonic() - self.began, self.found_by)

    @property
    def is_done(self) -> bool:
        """Whether the best is optimal, or the time is over."""
        return self.best.makespan <= self.bound or self._left() <= 0

    def _left(self) -> float:
        return self.seconds - (monotonic() - self.began)

    def _effort(self, share: float) -> Effort:
        return Effort(min(share * self.seconds, self._left()), self.seed)

    def _fits(self, found: Timeline) -> bool:
        limits = self.graph.limits
        return limits is None or all(peak <= limit for peak, limit in zip(found.peaks, limits, strict=True))

    def _safe_order(self) -> tuple[tuple[int, ...], ...]:
        """Per row an order of one micro-batch's runs that fits in memory."""
        one = replace(self.graph, micro_batches=1)
        order, limits = one_by_one(one), self.graph.limits
        if limits is None or self._fits(order):
            return order.rows
        order, beyond = least_memory(self.graph, Effort(self.seconds, self.seed))
        if not beyond:
            return order.rows
        short = [row for row, peak in enumerate(order.peaks) if peak > limits[row]]
        raise PlanError(
            f"no order of the tasks fits in memory: one micro-batch needs {order.peaks[short[0]]} on row "
            f"{short[0]}, whose limit is {limits[short[0]]}",
            remedy=f"the smallest limit that works is {max(limits) + beyond} on every row"
            if len(set(limits)) == 1
            else f"raise the limit of every row by {beyond}",
        )

    def _one_after_the_other(self, graph: TaskGraph) -> Timeline:
        """All micro-batches of a graph like the search's own, each in the order that fits in memory."""
        copies = range(graph.micro_batches)
        return in_order(graph, [[i * graph.size + k for i in copies for k in row] for row in self.safe_order])

    def offer(self, name: str, found: Timeline) -> None:
        """Keep a schedule if it is the best so far and fits."""
        if self._fits(found) and found.makespan < self.best.makespan:
            self.best, self.found_by = found, name

    def offer_squeezed(self, name: str, found: Timeline) -> None:
        """The same, after closing gaps."""
        self.offer(name, found)
        if self.best.makespan > self.bound:
            self.offer(name, squeeze(found))

    def named(self) -> None:
        """Every named schedule that suits the pipeline."""
        graph = self.graph
        for name, schedule in named_schedules(graph.pipeline, graph.micro_batches, self.splits_backward):
            self.offer(name, timeline(graph, schedule))

    def by_rules(self) -> None:
        """Better the named ones, and start from priority rules."""
        if self.best is not self.safe and not self.is_done:
            self.offer_squeezed(f"{self.found_by}, squeezed", self.best)
        for rule in (self._longest_tail, self._backward_first):
            if not self.is_done:
                self.offer_squeezed("list scheduling", list_schedule(self.graph, self.safe, rule))

    def _longest_tail(self, number: int) -> tuple[int, int]:
        return -self.bounds.tails[number], number

    def _backward_first(self, number: int) -> tuple[int, int, int]:
        run = self.graph.run(number)
        rank = {Phase.BACKWARD: 0, Phase.FORWARD: 1}.get(run.phase, 2)
        return rank, -run.stage if run.phase is Phase.FORWARD else run.stage, number

    def by_chance(self) -> None:
        """The longest tail first, where some kinds of runs are drawn to matter more and others less."""
        draw, tails, size = Random(self.seed), self.bounds.tails, self.graph.size
        for _ in range(max(CHANCES // self.graph.num_runs, 4)):
            if self.is_done:
                return
            reach = max(self.graph.loads) * draw.choice((1, 3, 8))
            shift = [draw.uniform(-reach, reach) for _ in range(size)]
            rule = [(shift[number % size] - tail, number) for number, tail in enumerate(tails)]
            self.offer_squeezed(
                "list scheduling by chance", list_schedule(self.graph, self.safe, rule.__getitem__)
            )

    def whole(self) -> None:
        """All runs at once."""
        found, self.bound = improve(self.best, self.bounds, self._effort(0.6))
        self.offer("the whole solved at once", found)

    def repeated(self) -> None:
        """A steady state, unrolled, with what can start earlier moved there."""
        period = shortest_period(self.graph, self.bounds, self._steady(), self._effort(0.4))
        if period is None:
            return
        unrolled = period.unrolled(self.graph)
        if self._fits(unrolled):
            early = list_schedule(self.graph, unrolled, lambda number: (unrolled.starts[number], number))
            self.offer_squeezed(f"a steady state of period {period.length * self.graph.tick:g}", early)

    def _steady(self) -> tuple[int, ...]:
        """When the runs of a micro-batch in the middle start, in a list schedule of a few."""
        graph = replace(self.graph, micro_batches=4 * len(self.graph.hosted))
        tails = Bounds(graph).tails
        listed = list_schedule(
            graph, self._one_after_the_other(graph), lambda number: (-tails[number], number)
        )
        middle = graph.micro_batches // 2 * graph.size
        return squeeze(listed, rounds=2).starts[middle : middle + graph.size]

    def windows(self) -> None:
        """Order the start, the end, and windows in between anew; larger ones where that is of no use."""
        runs = WINDOW_RUNS
        while not self.is_done:
            before = self.best.makespan
            for first, until in list(self._windows(runs)):
                if not self.is_done:
                    found, _ = improve(self.best, self.bounds, self._effort(0.1), first, until)
                    if found.makespan < self.best.makespan:
                        self.offer_squeezed("windows solved one by one", found)
            if self.best.makespan == before:
                if runs >= self.graph.num_runs:
                    return
                runs *= 2

    def _windows(self, runs: int) -> Iterator[tuple[int, int]]:
        """Of so many runs each, overlapping by half: the start and the end first."""
        times = sorted(self.best.starts)
        cuts = [0, *times[runs // 2 :: runs // 2], self.best.makespan]
        spans = list(zip(cuts, cuts[2:], strict=False)) or [(0, self.best.makespan)]
        yield spans[0]
        yield from spans[1:][::-1]
