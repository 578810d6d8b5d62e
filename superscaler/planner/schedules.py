"""Schedules: in which order the tasks of a pipeline run on each stage; printed and parsed as a grid.

A task is one phase of one micro-batch on one stage. A schedule lists, per stage, its forward and backward
tasks in order; preparation runs before the first and the update after the last.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from superscaler.errors import PlanError
from superscaler.ir.graph import Phase
from superscaler.ir.source_line import user_line
from superscaler.planner.order import Order


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
        label, _, body = line.rpartition(":")
        if label not in ("", f"stage {stage}"):
            raise PlanError(
                f"the schedule's row {stage} is headed {label!r}",
                where=user_line(),
                remedy=f"list the stages in order, from 'stage 0:'; this one is 'stage {stage}:'",
            )
        wrong = [word for word in body.split() if not re.fullmatch(r"[FB]\d+", word)]
        if wrong:
            raise PlanError(
                f"the schedule's row {line!r} has {wrong[0]!r}, which is no task",
                where=user_line(),
                remedy="write tasks as F0 (forward of micro-batch 0) and B0 (its backward)",
            )
        rows.append(tuple(Task(stage, Phase(word[0]), int(word[1:])) for word in body.split()))
    micro_batches = 1 + max((task.micro_batch for row in rows for task in row), default=0)
    return Schedule(name, micro_batches, tuple(rows))


def gpipe(micro_batches: int) -> ScheduleMaker:
    """All forwards, then all backwards (GPipe, arXiv 1811.06965).

    Raises:
        PlanError: There is not at least one micro-batch.
    """
    _check_count(micro_batches)

    def make(stages: int, training: bool) -> Schedule:
        def row(stage: int) -> Iterable[Task]:
            yield from (Task(stage, Phase.FORWARD, i) for i in range(micro_batches))
            if training:
                yield from (Task(stage, Phase.BACKWARD, i) for i in range(micro_batches))

        return Schedule("gpipe", micro_batches, tuple(tuple(row(stage)) for stage in range(stages)))

    return make


def one_f_one_b(micro_batches: int) -> ScheduleMaker:
    """One forward, one backward in turn once the pipeline is full (PipeDream-flush, arXiv 2006.09503).

    Raises:
        PlanError: There is not at least one micro-batch.
    """
    _check_count(micro_batches)

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


def _check_count(micro_batches: int) -> None:
    if micro_batches < 1:
        raise PlanError(
            f"a schedule of {micro_batches} micro-batches",
            where=user_line(),
            remedy="use 1 or more micro-batches",
        )


NAMED: dict[str, Callable[[int], ScheduleMaker]] = {"gpipe": gpipe, "1f1b": one_f_one_b}
"""Schedules by the name a plan string uses."""


def order_tasks(schedule: Schedule, orders: Iterable[Order[Task]]) -> Schedule:
    """Move tasks within their rows as little as the orders demand.

    Raises:
        PlanError: The orders contradict each other, name a task that is not there, or tasks of two stages.
    """
    orders = list(orders)
    if not orders:
        return schedule
    for order in orders:
        _check_order(schedule, order)
    rows = []
    for stage, row in enumerate(schedule.rows):
        here = [order for order in orders if order.first.stage == stage]
        rows.append(_stable_order(row, here) if here else row)
    return Schedule(f"{schedule.name} reordered", schedule.micro_batches, tuple(rows))


def _check_order(schedule: Schedule, order: Order[Task]) -> None:
    for task in (order.first, order.then):
        if not 0 <= task.stage < len(schedule.rows) or task not in schedule.rows[task.stage]:
            raise PlanError(
                f"the schedule {schedule.name!r} has no task {task} on stage {task.stage}",
                where=order.where,
                remedy=f"it has {len(schedule.rows)} stages, {schedule.micro_batches} micro-batches, from 0",
            )
    if order.first.stage != order.then.stage:
        raise PlanError(
            f"{order.first} of stage {order.first.stage} and {order.then} of stage {order.then.stage} share "
            "no device: only data orders them",
            where=order.where,
            remedy="order two tasks of one stage",
        )


def _stable_order(row: tuple[Task, ...], orders: list[Order[Task]]) -> tuple[Task, ...]:
    sorter: TopologicalSorter[Task] = TopologicalSorter({task: set() for task in row})
    for order in orders:
        sorter.add(order.then, order.first)
    for task in row:
        if task.phase is Phase.BACKWARD:
            forward = Task(task.stage, Phase.FORWARD, task.micro_batch)
            if forward in row:
                sorter.add(task, forward)
    try:
        sorter.prepare()
    except CycleError as error:
        cycle = error.args[1]
        lines = dict.fromkeys(order.where for order in orders if {order.first, order.then} <= {*cycle})
        raise PlanError(
            f"the orders of stage {row[0].stage}'s tasks contradict each other or the data: "
            + " before ".join(map(str, cycle)),
            where=", ".join(filter(None, lines)),
            remedy="drop one of these p.order(...) calls; a micro-batch's B runs after its F",
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
