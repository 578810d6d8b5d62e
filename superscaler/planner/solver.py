"""The mathematical solver: schedules and periods by OR-Tools CP-SAT, with a proof of how good they are.

All that names OR-Tools is here. What is found depends on the problem, the seed and the deterministic time alone,
unless the limit in seconds ends the search first.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from ortools.sat.python import cp_model

from superscaler.planner.list_scheduling import in_order
from superscaler.planner.lower_bound import Bounds
from superscaler.planner.task_graph import TaskGraph
from superscaler.planner.timeline import Timeline

DETERMINISTIC_SHARE = 0.4
"""Deterministic time per second of the clock, below what processors of 2020 reach: so that the clock, which no two
runs share, seldom ends a search."""
FOUND = (cp_model.OPTIMAL, cp_model.FEASIBLE)


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to search."""

    seconds: float
    """Of the clock, at most."""
    seed: int = 0

    def solve(self, model: cp_model.CpModel) -> tuple[cp_model.CpSolver, bool]:
        """The solver after its search, and whether it has found anything."""
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1  # finds such schedules sooner than many strategies in turns
        solver.parameters.random_seed = self.seed
        solver.parameters.max_time_in_seconds = max(0.01, self.seconds)
        solver.parameters.max_deterministic_time = max(0.01, DETERMINISTIC_SHARE * self.seconds)
        return solver, solver.solve(model) in FOUND


def improve(
    known: Timeline, bounds: Bounds, effort: Effort, first: int = 0, until: int | None = None
) -> tuple[Timeline, int]:
    """Order the runs that start from `first` on and before `until` anew; all others keep their order.

    Returns:
        The best schedule found, and a bound on all schedules, which is better than that of `bounds` only where all
        runs are ordered anew.
    """
    graph, stop = known.graph, known.makespan if until is None else until
    window = _Window(known, bounds, first, stop)
    solver, found = effort.solve(window.model)
    whole = len(window.starts) == graph.num_runs
    bound = max(bounds.makespan, round(solver.best_objective_bound)) if whole else bounds.makespan
    if not found:
        return known, min(bound, known.makespan)
    starts = tuple(solver.value(window.start(number)) for number in range(graph.num_runs))
    return min(known, in_order(graph, Timeline(graph, starts).rows), key=lambda one: one.makespan), bound


class _Window:
    """Start times of the runs of a window, the runs before it fixed, and those after it moved as a block."""

    def __init__(self, known: Timeline, bounds: Bounds, first: int, stop: int) -> None:
        self.known, self.graph, self.first, self.stop = known, known.graph, first, stop
        self.model = cp_model.CpModel()
        self.makespan = self.model.new_int_var(bounds.makespan, known.makespan, "makespan")
        self.starts: dict[int, cp_model.IntVar] = {}
        for number, time in enumerate(known.starts):
            if first <= time < stop:
                latest = known.makespan - bounds.tails[number] - self.graph.run(number).duration
                start = self.model.new_int_var(max(first, bounds.heads[number]), latest, "")
                self.model.add_hint(start, time)
                self.starts[number] = start
        self.model.add_hint(self.makespan, known.makespan)
        for number in self.starts:
            self._precede(number)
        for row, numbers in enumerate(known.rows):
            self._share(row, numbers)
        self.model.minimize(self.makespan)

    def start(self, number: int) -> cp_model.LinearExpr | int:
        """When a run starts: what is after the window ends as long before the end of all as it did."""
        if number in self.starts:
            return self.starts[number]
        time = self.known.starts[number]
        return time if time < self.first else self.makespan - (self.known.makespan - time)

    def _end(self, number: int) -> cp_model.LinearExpr | int:
        return self.start(number) + self.graph.run(number).duration

    def _precede(self, number: int) -> None:
        """Data and the order of micro-batches, to and from a run of the window."""
        graph = self.graph
        kind = number % graph.size
        self.model.add(self.makespan >= self._end(number))
        for other, wait in graph.runs[kind].before:
            self.model.add(self.start(number) >= self._end(number - kind + other) + wait)
        for other, wait in graph.after[kind]:
            if number - kind + other not in self.starts:
                self.model.add(self.start(number - kind + other) >= self._end(number) + wait)
        if number >= graph.size:
            self.model.add(self.start(number) >= self._end(number - graph.size))
        if number + graph.size < graph.num_runs:
            self.model.add(self.start(number + graph.size) >= self._end(number))

    def _share(self, row: int, numbers: Iterable[int]) -> None:
        """One run at a time on a row, and no more memory than there is."""
        inside = [number for number in numbers if number in self.starts]
        if not inside:
            return
        self.model.add_no_overlap(
            self.model.new_fixed_size_interval_var(self.starts[n], self.graph.run(n).duration, "")
            for n in inside
        )
        for number in numbers:
            if number not in self.starts and self.known.starts[number] >= self.stop:
                for other in inside:
                    self.model.add(self.start(number) >= self._end(other))
                break
        before = [
            self.known.ends[n] for n in numbers if n not in self.starts and self.known.starts[n] < self.first
        ]
        for number in inside if before else ():
            self.model.add(self.starts[number] >= max(before))
        if self.graph.limits is not None:
            self._memory(row, inside, self.graph.limits[row])

    def _memory(self, row: int, inside: list[int], limit: int) -> None:
        """Micro-batches take memory in turn, so that of one kind fit so many is a matter of precedence; where a row
        holds several kinds, their sum is limited as well.
        """
        graph, size = self.graph, self.graph.size
        here = [hold for hold in graph.holds if row in graph.runs[hold.taken_by].rows]
        for hold in here:
            count = limit // hold.amount
            for i in range(graph.micro_batches - count):
                taker, freer = (i + count) * size + hold.taken_by, i * size + hold.freed_by
                if taker in self.starts or freer in self.starts:
                    self.model.add(self.start(taker) >= self._end(freer))
        if len(here) < 2:
            return
        held, amounts = [], []
        for i in range(graph.micro_batches):
            for hold in here:
                taker, freer = i * size + hold.taken_by, i * size + hold.freed_by
                if taker not in self.starts and freer not in self.starts:
                    spans = self.known.starts[taker] < self.first and self.known.starts[freer] >= self.stop
                    if not spans:
                        continue
                take = (
                    max(self.known.starts[taker], self.first)
                    if taker not in self.starts
                    else self.starts[taker]
                )
                free = self._end(freer) if freer in self.starts else self.makespan + graph.run(freer).duration
                length = self.model.new_int_var(0, 2 * self.known.makespan, "")
                held.append(self.model.new_interval_var(take, length, free, ""))
                amounts.append(hold.amount)
        self.model.add_cumulative(held, amounts, limit)


def least_memory(graph: TaskGraph, effort: Effort) -> tuple[Timeline, int]:
    """An order of one micro-batch's runs with the least memory beyond the limits of the rows, and how much that is."""
    assert graph.limits is not None, "without limits any order will do"
    free = replace(graph, micro_batches=1, limits=None)
    horizon = sum(run.duration + max((wait for _, wait in run.before), default=0) + 1 for run in free.runs)
    model = cp_model.CpModel()
    beyond = model.new_int_var(0, sum(hold.amount for hold in graph.holds), "beyond")
    starts = [model.new_int_var(0, horizon, "") for _ in free.runs]
    # a run that takes no time still has its place in the order
    ends = [start + max(1, run.duration) for start, run in zip(starts, free.runs, strict=True)]
    for start, run in zip(starts, free.runs, strict=True):
        for other, wait in run.before:
            model.add(start >= ends[other] + wait)
    for row, hosted in enumerate(free.hosted):
        sizes = [max(1, free.runs[number].duration) for number in hosted]
        model.add_no_overlap(
            model.new_fixed_size_interval_var(starts[number], size, "")
            for number, size in zip(hosted, sizes, strict=True)
        )
        here = [hold for hold in free.holds if row in free.runs[hold.taken_by].rows]
        spans = [
            model.new_interval_var(
                starts[hold.taken_by], model.new_int_var(0, horizon, ""), ends[hold.freed_by], ""
            )
            for hold in here
        ]
        model.add_cumulative(spans, [hold.amount for hold in here], graph.limits[row] + beyond)
    model.minimize(beyond)
    solver, found = effort.solve(model)
    assert found, "without limits there is an order"
    times = Timeline(free, tuple(solver.value(start) for start in starts))
    return in_order(free, times.rows), solver.value(beyond)


@dataclass(frozen=True, slots=True)
class Period:
    """A schedule that repeats: run k of micro-batch i starts at ``starts[k] + i * length``."""

    length: int
    starts: tuple[int, ...]
    bound: int
    """No period is shorter."""

    def unrolled(self, graph: TaskGraph) -> Timeline:
        """All micro-batches, without any gaps at the start and the end closed."""
        first = min(self.starts)
        return Timeline(
            graph,
            tuple(
                start - first + i * self.length for i in range(graph.micro_batches) for start in self.starts
            ),
        )


def shortest_period(graph: TaskGraph, bounds: Bounds, like: Sequence[int], effort: Effort) -> Period | None:
    """The steady state with the shortest period; of those, one in which a micro-batch takes little time.

    None where the time does not suffice to find any.

    Args:
        graph: The problem.
        bounds: What is known of it.
        like: Where to begin: when the runs of one micro-batch start in some schedule.
        effort: How long to search, in all.
    """
    share = replace(effort, seconds=effort.seconds / 3)
    length = bound = bounds.period
    best = _Cycle(graph, length, length, like)
    solver, found = share.solve(best.model)
    if not found:
        total = sum(run.duration + max((wait for _, wait in run.before), default=0) for run in graph.runs)
        best = _Cycle(graph, length, total, like)
        best.model.minimize(best.length)
        solver, found = share.solve(best.model)
        if not found:
            return None
        length, bound = solver.value(best.length), max(bound, round(solver.best_objective_bound))
    starts = best.starts(solver)
    short = _Cycle(graph, length, length, starts)
    short.model.minimize(short.span())
    solver, found = share.solve(short.model)
    return Period(length, short.starts(solver) if found else starts, bound)


class _Cycle:
    """One micro-batch's runs on a circle of time: run k starts in its turn, at a time from 0 up to the period."""

    def __init__(self, graph: TaskGraph, least: int, most: int, like: Sequence[int]) -> None:
        self.graph, self.most = graph, most
        self.model = cp_model.CpModel()
        self.length = self.model.new_int_var(least, most, "length")
        turns = max(graph.micro_batches, 2 * graph.size)
        self.turns = [self.model.new_int_var(0, turns, "") for _ in graph.runs]
        self.times = [self.model.new_int_var(0, most, "") for _ in graph.runs]
        self.earlier: dict[tuple[int, int], cp_model.LinearExpr | int] = {}
        for time in self.times:
            self.model.add(time < self.length)
        for start, turn, time in zip(like, self.turns, self.times, strict=True):
            self.model.add_hint(turn, (start - min(like)) // least)
            self.model.add_hint(time, (start - min(like)) % least)
        for number, run in enumerate(graph.runs):
            for other, wait in run.before:
                self._precede(other, number, graph.runs[other].duration + wait, least)
        for hosted in graph.hosted:
            for first, then in combinations(hosted, 2):
                self._apart(first, then)
        for row in range(len(graph.hosted)):
            self._memory(row)

    def _precede(self, first: int, then: int, apart: int, least: int) -> None:
        """So many turns lie between the two that the times leave room; with enough turns they always do."""
        enough = -(-apart // least) + 1
        between = self.turns[then] - self.turns[first]
        choices = [self.model.new_bool_var("") for _ in range(enough + 1)]
        self.model.add_exactly_one(choices)
        for turns, choice in enumerate(choices):
            if turns == enough:
                self.model.add(between >= turns).only_enforce_if(choice)
                continue
            self.model.add(between == turns).only_enforce_if(choice)
            self.model.add(
                self.times[then] + turns * self.length >= self.times[first] + apart
            ).only_enforce_if(choice)

    def _apart(self, first: int, then: int) -> None:
        """Two runs of one row do not overlap on the circle."""
        if (first, then) in self.earlier:
            return
        order = self.model.new_bool_var("")
        self.earlier[first, then], self.earlier[then, first] = order, order.negated()
        for a, b, choice in ((first, then, order), (then, first, order.negated())):
            lengths = self.graph.runs[a].duration, self.graph.runs[b].duration
            self.model.add(self.times[a] + lengths[0] <= self.times[b]).only_enforce_if(choice)
            self.model.add(self.times[b] + lengths[1] <= self.times[a] + self.length).only_enforce_if(choice)

    def _memory(self, row: int) -> None:
        """When a run takes memory, those that hold some: by turns between, and by who comes first in the circle."""
        graph = self.graph
        if graph.limits is None:
            return
        here = [hold for hold in graph.holds if row in graph.runs[hold.taken_by].rows]
        for moment in {hold.taken_by for hold in here}:
            held: list[cp_model.LinearExpr | int] = []
            for hold in here:
                taken = 1 if hold.taken_by == moment else self.earlier[hold.taken_by, moment]
                freed = 0 if hold.freed_by == moment else self.earlier[hold.freed_by, moment]
                turns = self.turns[hold.freed_by] - self.turns[hold.taken_by]
                held.append(hold.amount * (turns + taken - freed))
            self.model.add(cp_model.LinearExpr.sum(held) <= graph.limits[row])

    def span(self) -> cp_model.IntVar:
        """With a fixed period: how long it takes until a micro-batch is done."""
        span = self.model.new_int_var(
            0, self.most * (max(self.graph.micro_batches, 2 * self.graph.size) + 2), ""
        )
        for run, turn, time in zip(self.graph.runs, self.turns, self.times, strict=True):
            self.model.add(span >= turn * self.most + time + run.duration)
        return span

    def starts(self, solver: cp_model.CpSolver) -> tuple[int, ...]:
        """When each run of the first micro-batch starts."""
        length = solver.value(self.length)
        return tuple(
            solver.value(turn) * length + solver.value(time)
            for turn, time in zip(self.turns, self.times, strict=True)
        )
