"""Timeline: when every task of a schedule runs if all start as early as they can; bubbles and peak memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from superscaler.errors import PlanError
from superscaler.planner.schedule import Schedule, Task
from superscaler.planner.task_graph import TaskGraph


@dataclass(frozen=True)
class Timeline:
    """Start times of all runs of a TaskGraph, in ticks."""

    graph: TaskGraph
    starts: tuple[int, ...]

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """When each run ends."""
        return tuple(start + self.graph.run(number).duration for number, start in enumerate(self.starts))

    @cached_property
    def makespan(self) -> int:
        """From the start of the first run to the end of the last."""
        return max(self.ends)

    @cached_property
    def rows(self) -> tuple[tuple[int, ...], ...]:
        """Per row its runs in order."""
        return tuple(
            tuple(sorted(numbers, key=lambda number: (self.starts[number], self.ends[number], number)))
            for numbers in (
                [i * self.graph.size + number for i in range(self.graph.micro_batches) for number in hosted]
                for hosted in self.graph.hosted
            )
        )

    @property
    def spans(self) -> tuple[int, ...]:
        """Per row the time from the start of its first run to the end of its last."""
        return tuple(self.ends[row[-1]] - self.starts[row[0]] for row in self.rows)

    @property
    def bubbles(self) -> tuple[int, ...]:
        """Per row the time it waits between its first run and its last."""
        works = (load * self.graph.micro_batches for load in self.graph.loads)
        return tuple(span - work for span, work in zip(self.spans, works, strict=True))

    @property
    def idle(self) -> tuple[int, ...]:
        """Per row the time of the makespan in which it does not work."""
        return tuple(self.makespan - load * self.graph.micro_batches for load in self.graph.loads)

    @cached_property
    def peaks(self) -> tuple[int, ...]:
        """Per row the most memory it holds at once."""
        return tuple(peak_memory(self.graph, row) for row in self.rows)

    def schedule(self, name: str) -> Schedule:
        """The order of the tasks, without the times."""
        rows = tuple(tuple(map(self.graph.task, row)) for row in self.rows)
        return Schedule(name, self.graph.micro_batches, rows)


def peak_memory(graph: TaskGraph, row: Sequence[int]) -> int:
    """The most memory that runs in this order on one row hold at once; it does not depend on times."""
    held = peak = 0
    for number in row:
        held += graph.takes[number % graph.size]
        peak = max(peak, held)
        held -= graph.frees[number % graph.size]
    return peak


def timeline(graph: TaskGraph, schedule: Schedule) -> Timeline:
    """When the tasks of a schedule run.

    Raises:
        PlanError: A row lacks a task, has one too many, or rows wait for each other.
    """
    numbers = [
        {graph.task(i): i for i in (k + j * graph.size for j in range(graph.micro_batches) for k in hosted)}
        for hosted in graph.hosted
    ]
    if len(schedule.rows) != len(numbers):
        raise _unfit(schedule, f"has {len(schedule.rows)} rows for {len(numbers)} rows of devices")
    for row, (tasks, known) in enumerate(zip(schedule.rows, numbers, strict=True)):
        for task in tasks:
            if task not in known:
                raise _unfit(schedule, f"runs {_name(task)} on row {row}, which is no task of it")
        if len(tasks) != len(known):
            missing = sorted(set(known) - set(tasks))
            fault = f"leaves out {_name(missing[0])}" if missing else "runs a task twice"
            raise _unfit(schedule, f"{fault} on row {row}")
    rows = [[known[task] for task in tasks] for tasks, known in zip(schedule.rows, numbers, strict=True)]
    starts = earliest_starts(graph, rows)
    waiting = [row[0] for row in _not_started(rows, starts) if row]
    if waiting:
        names = ", ".join(
            f"row {graph.run(number).rows[0]} at {_name(graph.task(number))}" for number in waiting
        )
        raise _unfit(schedule, f"comes to a deadlock: rows wait for each other: {names}")
    return Timeline(graph, tuple(start for start in starts if start is not None))


def earliest_starts(graph: TaskGraph, rows: Sequence[Sequence[int]]) -> list[int | None]:
    """When each run starts if every row keeps its order and nothing waits without need; None: never."""
    size = graph.size
    starts: list[int | None] = [None] * graph.num_runs
    missing = [len(graph.run(number).before) + len(graph.run(number).rows) for number in range(len(starts))]
    earliest = [0] * len(starts)
    following: list[list[int]] = [[] for _ in starts]
    for row in rows:
        for first, then in pairwise(row):
            following[first].append(then)
    ready: list[int] = []

    def arrive(number: int, time: int) -> None:
        earliest[number] = max(earliest[number], time)
        missing[number] -= 1
        if not missing[number]:
            ready.append(number)

    for row in rows:
        if row:
            arrive(row[0], 0)
    while ready:
        number = ready.pop()
        starts[number] = earliest[number]
        end = earliest[number] + graph.run(number).duration
        for other in following[number]:
            arrive(other, end)
        for other, wait in graph.after[number % size]:
            arrive(number - number % size + other, end + wait)
    return starts


def _not_started(rows: Sequence[Sequence[int]], starts: Sequence[int | None]) -> list[list[int]]:
    return [[number for number in row if starts[number] is None] for row in rows]


def _name(task: Task) -> str:
    return f"{task} of stage {task.stage}"


def _unfit(schedule: Schedule, fault: str) -> PlanError:
    return PlanError(
        f"the schedule {schedule.name!r} {fault}",
        remedy="give every row each task of its stages once, in an order in which what it waits for can run",
    )
