"""List scheduling: whenever rows are free, start what is ready and matters most, if memory is sure to suffice.

Memory is sure to suffice if, after the run, the rest can still go on in an order known to fit: so nothing is ever
started that would block the rows for good.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from superscaler.planner.task_graph import TaskGraph
from superscaler.planner.timeline import Timeline, earliest_starts

Priority = Callable[[int], object]
"""The run with the least value goes first."""


def in_order(graph: TaskGraph, rows: Sequence[Sequence[int]]) -> Timeline:
    """All runs in the given order of each row, which must have no deadlock."""
    starts = [start for start in earliest_starts(graph, rows) if start is not None]
    assert len(starts) == graph.num_runs, "the rows wait for each other"
    return Timeline(graph, tuple(starts))


def one_by_one(graph: TaskGraph) -> Timeline:
    """One micro-batch after the other: needs the least memory."""
    count = graph.micro_batches
    return in_order(
        graph, [[i * graph.size + k for i in range(count) for k in hosted] for hosted in graph.hosted]
    )


def list_schedule(graph: TaskGraph, safe: Timeline, priority: Priority) -> Timeline:
    """Start runs by priority; `safe` is a schedule that fits in memory."""
    return _ListScheduler(graph, safe, priority).run()


def squeeze(timeline: Timeline, rounds: int = 8) -> Timeline:
    """Push all runs to the end, then to the start, as long as that shortens the schedule.

    Forward-backward improvement (Li and Willis 1992): pushing to one end closes gaps at the other.
    """
    best = timeline
    for _ in range(rounds):
        better = _pushed(_pushed(best))
        if better.makespan >= best.makespan:
            break
        best = better
    return best


def _pushed(timeline: Timeline) -> Timeline:
    """Push all runs to the end; the result is of the reversed graph, on which it is a push to the start."""
    graph = timeline.graph.reversed
    last = graph.num_runs - 1
    starts = tuple(timeline.makespan - end for end in timeline.ends[::-1])
    safe = Timeline(graph, starts)
    pushed = list_schedule(graph, safe, lambda number: (starts[number], number))
    kept = in_order(graph, [[last - number for number in row[::-1]] for row in timeline.rows])
    return min(pushed, kept, key=lambda one: one.makespan)


@dataclass(slots=True)
class _Row:
    order: Sequence[int]
    """What is still to run may run in this order."""
    next: int = 0
    """Everything before this place has started."""
    held: int = 0
    busy: bool = False
    awaited_by: int | None = None
    """A run on several rows for which this row is kept free."""


@dataclass
class _ListScheduler:
    graph: TaskGraph
    safe: Timeline
    priority: Priority
    starts: list[int | None] = field(init=False)

    def __post_init__(self) -> None:
        graph = self.graph
        self.starts = [None] * graph.num_runs
        self.rows = [_Row(row) for row in self.safe.rows]
        self.missing = [len(run.before) for run in graph.runs] * graph.micro_batches
        self.arrived = [0] * graph.num_runs
        self.next_of = [0] * graph.size
        """Per run of a micro-batch the first micro-batch it has not started for."""
        self.events: list[tuple[int, int, int]] = []
        """(time, 0: a run has ended or 1: its result has arrived, run)."""

    def run(self) -> Timeline:
        """Go from event to event."""
        touched = set(range(len(self.rows)))
        time = 0
        while True:
            self._start(time, touched)
            if not self.events:
                break
            time = self.events[0][0]
            touched = set()
            while self.events and self.events[0][0] == time:
                _, kind, number = heappop(self.events)
                touched |= self._arrive(number) if kind else self._end(number, time)
        starts = [start for start in self.starts if start is not None]
        assert len(starts) == self.graph.num_runs, "a safe order leaves nothing behind"
        return Timeline(self.graph, tuple(starts))

    def _end(self, number: int, time: int) -> set[int]:
        graph = self.graph
        kind = number % graph.size
        for row in graph.runs[kind].rows:
            self.rows[row].busy = False
            self.rows[row].held -= graph.frees[kind]
        touched = set(graph.runs[kind].rows)
        for other, wait in graph.after[kind]:
            later = number - kind + other
            if wait:
                heappush(self.events, (time + wait, 1, later))
            else:
                touched |= self._arrive(later)
        return touched

    def _arrive(self, number: int) -> set[int]:
        self.missing[number] -= 1
        return set() if self.missing[number] else set(self.graph.run(number).rows)

    def _start(self, time: int, touched: set[int]) -> None:
        """Start what can start on the rows where something has changed."""
        graph = self.graph
        kinds = {kind for row in touched if not self.rows[row].busy for kind in graph.hosted[row]}
        candidates = [
            number
            for kind in kinds
            if self.next_of[kind] < graph.micro_batches
            and not self.missing[number := self.next_of[kind] * graph.size + kind]
        ]
        again = False
        for number in sorted(candidates, key=self.priority):  # type: ignore[arg-type]
            rows = [self.rows[row] for row in graph.run(number).rows]
            if any(row.awaited_by not in (None, number) for row in rows) or not self._fits(number, rows):
                continue
            if any(row.busy for row in rows):
                if len(rows) > 1:
                    for row in rows:
                        row.awaited_by = number
                continue
            self._begin(number, rows, time)
            again = again or not graph.run(number).duration
        if again:
            touched |= self._finish_at_once(time)
            self._start(time, touched)

    def _finish_at_once(self, time: int) -> set[int]:
        """Runs that take no time end as they start."""
        touched: set[int] = set()
        while self.events and self.events[0][:2] == (time, 0):
            touched |= self._end(heappop(self.events)[2], time)
        return touched

    def _begin(self, number: int, rows: Sequence[_Row], time: int) -> None:
        kind = number % self.graph.size
        self.starts[number] = time
        self.next_of[kind] += 1
        for row in rows:
            row.busy, row.awaited_by = True, None
            row.held += self.graph.takes[kind]
            while row.next < len(row.order) and self.starts[row.order[row.next]] is not None:
                row.next += 1
        heappush(self.events, (time + self.graph.runs[kind].duration, 0, number))

    def _fits(self, number: int, rows: Sequence[_Row]) -> bool:
        """Whether what is still to run fits in memory if this run is moved before all of it."""
        graph, limits = self.graph, self.graph.limits
        kind = number % graph.size
        takes, more = graph.takes[kind], graph.takes[kind] - graph.frees[kind]
        if limits is None or not takes:
            return True
        for index, row in zip(graph.runs[kind].rows, rows, strict=True):
            held, limit = row.held, limits[index]
            if held + takes > limit:
                return False
            for place in range(row.next, len(row.order)):
                other = row.order[place]
                if other == number:
                    break
                if self.starts[other] is None:
                    other_kind = other % graph.size
                    if held + graph.takes[other_kind] + more > limit:
                        return False
                    held += graph.takes[other_kind] - graph.frees[other_kind]
        return True
