"""Schedules: in which order the tasks of a pipeline run on each stage; printed and parsed as a grid.

A task is one phase of one micro-batch on one stage. A schedule lists, per stage, its forward and backward tasks
in order; preparation runs before the first and the update after the last.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from superscaler.errors import PlanError
from superscaler.ir.graph import Phase


@dataclass(frozen=True, slots=True, order=True)
class Task:
    """One phase of one micro-batch on one stage; prints as ``F3`` within its stage's row."""

    stage: int
    phase: Phase
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.phase}{self.micro_batch}"


@dataclass(frozen=True, slots=True)
class Schedule:
    """Per stage the order of its tasks."""

    name: str
    micro_batches: int
    rows: tuple[tuple[Task, ...], ...]

    def __str__(self) -> str:
        """A row per stage: ``stage 0: F0 F1 B0 B1``."""
        return "\n".join(f"stage {stage}: {' '.join(map(str, row))}" for stage, row in enumerate(self.rows))


ScheduleMaker = Callable[[int, bool], Schedule]
"""From the number of stages, and whether there is a backward, to a Schedule."""


def parse_schedule(text: str, name: str = "custom") -> Schedule:
    """The inverse of printing a Schedule.

    Raises:
        PlanError: The text is no such grid.
    """
    rows = []
    for stage, line in enumerate(filter(None, map(str.strip, text.splitlines()))):
        _, _, body = line.rpartition(":")
        try:
            rows.append(tuple(Task(stage, Phase(word[0]), int(word[1:])) for word in body.split()))
        except ValueError as error:
            raise PlanError(
                f"the schedule's row {line!r} is not a list of tasks: {error}", remedy="write tasks as F0 B0"
            ) from None
    micro_batches = 1 + max((task.micro_batch for row in rows for task in row), default=0)
    return Schedule(name, micro_batches, tuple(rows))


def gpipe(micro_batches: int) -> ScheduleMaker:
    """All forwards, then all backwards (GPipe, arXiv 1811.06965)."""

    def make(stages: int, training: bool) -> Schedule:
        def row(stage: int) -> Iterable[Task]:
            yield from (Task(stage, Phase.FORWARD, i) for i in range(micro_batches))
            if training:
                yield from (Task(stage, Phase.BACKWARD, i) for i in range(micro_batches))

        return Schedule("gpipe", micro_batches, tuple(tuple(row(stage)) for stage in range(stages)))

    return make


def one_f_one_b(micro_batches: int) -> ScheduleMaker:
    """One forward, one backward in turn once the pipeline is full (PipeDream-flush, arXiv 2006.09503)."""

    def make(stages: int, training: bool) -> Schedule:
        if not training:
            return gpipe(micro_batches)(stages, training)

        def row(stage: int) -> Iterable[Task]:
            warm_up = min(stages - 1 - stage, micro_batches)
            yield from (Task(stage, Phase.FORWARD, i) for i in range(warm_up))
            for i in range(micro_batches - warm_up):
                yield Task(stage, Phase.FORWARD, warm_up + i)
                yield Task(stage, Phase.BACKWARD, i)
            yield from (Task(stage, Phase.BACKWARD, i) for i in range(micro_batches - warm_up, micro_batches))

        return Schedule("1f1b", micro_batches, tuple(tuple(row(stage)) for stage in range(stages)))

    return make


NAMED: dict[str, Callable[[int], ScheduleMaker]] = {"gpipe": gpipe, "1f1b": one_f_one_b}
"""Schedules by the name a plan string uses."""


def order_tasks(schedule: Schedule, before: Iterable[tuple[Task, Task]]) -> Schedule:
    """Move tasks within their rows as little as the pairs (first, then) of one stage demand.

    Raises:
        PlanError: The pairs contradict each other.
    """
    pairs = list(before)
    rows = []
    for row in schedule.rows:
        here = [(first, then) for first, then in pairs if first in row and then in row]
        rows.append(_stable_order(row, here) if here else row)
    return Schedule(
        schedule.name if not pairs else f"{schedule.name} reordered", schedule.micro_batches, tuple(rows)
    )


def _stable_order(row: tuple[Task, ...], pairs: list[tuple[Task, Task]]) -> tuple[Task, ...]:
    sorter: TopologicalSorter[Task] = TopologicalSorter({task: set() for task in row})
    for first, then in pairs:
        sorter.add(then, first)
    for task in row:
        if task.phase is Phase.BACKWARD:
            forward = Task(task.stage, Phase.FORWARD, task.micro_batch)
            if forward in row:
                sorter.add(task, forward)
    try:
        sorter.prepare()
    except CycleError as error:
        chain = " -> ".join(map(str, error.args[1]))
        raise PlanError(
            f"the orders of stage {row[0].stage}'s tasks contradict each other: {chain}",
            remedy="drop one of these p.order(...) calls",
        ) from None
    ordered: list[Task] = []
    ready: list[Task] = []
    position = {task: i for i, task in enumerate(row)}
    while sorter.is_active():
        ready += sorter.get_ready()
        ready.sort(key=position.__getitem__)
        task = ready.pop(0)
        ordered.append(task)
        sorter.done(task)
    return tuple(ordered)
