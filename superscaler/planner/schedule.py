"""Schedule: in which order the tasks of a pipeline run; printed and parsed as a grid.

A task is one phase of one micro-batch on one stage. A row is a set of devices that run one program. A schedule
lists, per row, the tasks of all stages the row hosts, in order; preparation runs before the first and the update
after the last.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

from superscaler.errors import PlanError
from superscaler.ir.graph import Phase
from superscaler.ir.source_line import user_line
from superscaler.planner.order import Order


@dataclass(frozen=True, slots=True, order=True)
class Task:
    """One phase of one micro-batch on one stage; prints as ``F3`` where the stage is known."""

    stage: int
    phase: Phase
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.phase}{self.micro_batch}"


@dataclass(frozen=True, slots=True)
class Schedule:
    """Per row the order of its tasks."""

    name: str
    micro_batches: int
    rows: tuple[tuple[Task, ...], ...]

    def __str__(self) -> str:
        """A row per line: ``stage 0: F0 B0`` where row 0 hosts stage 0 alone, else ``row 0: 0F0 2F0 2B0 0B0``."""
        return "\n".join(_line(number, row) for number, row in enumerate(self.rows))

    @property
    def splits_backward(self) -> bool:
        """Whether gradients of weights are tasks of their own."""
        return any(task.phase is Phase.WEIGHT for row in self.rows for task in row)


def _line(number: int, row: tuple[Task, ...]) -> str:
    if all(task.stage == number for task in row):
        return f"stage {number}: {' '.join(map(str, row))}"
    return f"row {number}: {' '.join(f'{task.stage}{task}' for task in row)}"


def parse_schedule(text: str, name: str = "custom") -> Schedule:
    """The inverse of printing a Schedule; a row of one stage needs no heading.

    Raises:
        PlanError: The text is no such grid.
    """
    lines = filter(None, map(str.strip, text.splitlines()))
    rows = tuple(_parse_row(number, line) for number, line in enumerate(lines))
    micro_batches = 1 + max((task.micro_batch for row in rows for task in row), default=0)
    return Schedule(name, micro_batches, rows)


def _parse_row(number: int, line: str) -> tuple[Task, ...]:
    label, _, body = line.rpartition(":")
    if label not in ("", f"stage {number}", f"row {number}"):
        raise PlanError(
            f"the schedule's row {number} is headed {label!r}",
            where=user_line(),
            remedy=f"list the rows in order, from 'stage 0:'; this one is 'stage {number}:', or "
            f"'row {number}:' where it hosts other stages",
        )
    several = label.startswith("row")
    pattern = re.compile(r"(\d+)([FBW])(\d+)" if several else r"()([FBW])(\d+)")
    tasks = []
    for word in body.split():
        match = pattern.fullmatch(word)
        if match is None:
            example = (
                "2F0 (stage 2: forward of micro-batch 0), 2B0"
                if several
                else "F0 (forward of micro-batch 0), B0"
            )
            raise PlanError(
                f"the schedule's row {line!r} has {word!r}, which is no task",
                where=user_line(),
                remedy=f"write tasks as {example} (its backward); W0 for gradients of weights on their own",
            )
        tasks.append(Task(int(match[1] or number), Phase(match[2]), int(match[3])))
    return tuple(tasks)


def order_tasks(schedule: Schedule, orders: Iterable[Order[Task]]) -> Schedule:
    """Move tasks within their rows as little as the orders demand.

    Raises:
        PlanError: The orders contradict each other, name a task that is not there, or tasks that share no row.
    """
    orders = list(orders)
    if not orders:
        return schedule
    for order in orders:
        _check_order(schedule, order)
    rows = []
    for row in schedule.rows:
        here = [order for order in orders if order.first in row and order.then in row]
        rows.append(_stable_order(row, here) if here else row)
    return Schedule(f"{schedule.name} reordered", schedule.micro_batches, tuple(rows))


def _check_order(schedule: Schedule, order: Order[Task]) -> None:
    stages = 1 + max((task.stage for row in schedule.rows for task in row), default=-1)
    for task in (order.first, order.then):
        if not any(task in row for row in schedule.rows):
            raise PlanError(
                f"the schedule {schedule.name!r} has no task {task} on stage {task.stage}",
                where=order.where,
                remedy=f"it has {stages} stages, {schedule.micro_batches} micro-batches, from 0",
            )
    if not any(order.first in row and order.then in row for row in schedule.rows):
        raise PlanError(
            f"{order.first} of stage {order.first.stage} and {order.then} of stage {order.then.stage} share "
            "no device: only data orders them",
            where=order.where,
            remedy="order two tasks of one stage, or of stages on the same devices",
        )


def _stable_order(row: tuple[Task, ...], orders: list[Order[Task]]) -> tuple[Task, ...]:
    sorter: TopologicalSorter[Task] = TopologicalSorter({task: set() for task in row})
    for order in orders:
        sorter.add(order.then, order.first)
    tasks = set(row)
    for task in row:
        phases = (Phase.FORWARD, Phase.BACKWARD, Phase.WEIGHT)
        for first, then in pairwise(Task(task.stage, phase, task.micro_batch) for phase in phases):
            if then == task and first in tasks:
                sorter.add(then, first)
    try:
        sorter.prepare()
    except CycleError as error:
        cycle = error.args[1]
        lines = dict.fromkeys(order.where for order in orders if {order.first, order.then} <= {*cycle})
        raise PlanError(
            f"the orders of {_whose(cycle)} tasks contradict each other or the data: "
            + " before ".join(map(str, cycle)),
            where=", ".join(filter(None, lines)),
            remedy="drop one of these p.order(...) calls; a micro-batch's B runs after its F, its W after its B",
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


def _whose(tasks: Iterable[Task]) -> str:
    stages = sorted({task.stage for task in tasks})
    return f"stage {stages[0]}'s" if len(stages) == 1 else f"stages {', '.join(map(str, stages))}'s"
