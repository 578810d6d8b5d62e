"""Check of a schedule: the tasks of a plan, run on the messages its events stand for, come to their end.

A schedule may be the user's own, or one that is known by name, for stages placed in a way it was not made for.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise, permutations, product

from superscaler.errors import PlanError
from superscaler.ir.graph import Phase
from superscaler.ir.mesh import Mesh
from superscaler.planner.materialize import PHASES, MaterializedGraph, Transfer
from superscaler.planner.progress import Message, Part, RowTasks, find_stop, row_title
from superscaler.planner.schedule import Schedule
from superscaler.planner.steps import Step, StepKind


def check_schedule(materialized: MaterializedGraph, schedule: Schedule, where: str) -> None:
    """Refuse a schedule with which the rows would wait for ever.

    Args:
        materialized: What the tasks do.
        schedule: Their order.
        where: Who chose it.

    Raises:
        PlanError: A row lacks a task or has one too many, or rows wait for each other; with the grid.
    """
    stop = find_stop(_rows(materialized, schedule), schedule.micro_batches)
    if stop is None:
        return
    circle = _circle(materialized)
    if circle is None:
        raise PlanError(
            f"the schedule {schedule.name!r} cannot be run: {stop.what}", where=where, remedy=stop.remedy
        )
    raise PlanError(
        f"the schedule {schedule.name!r} cannot be run: {stop.what}\n  {circle}",
        where=where,
        remedy="place operators so that no two stages feed each other: what comes later on the same devices as "
        "another chunk of them, p.assign(operators, devices, chunk=1); or use p.order(schedules.gpipe(...))",
    )


def _rows(materialized: MaterializedGraph, schedule: Schedule) -> list[RowTasks]:
    """What each row runs, and where it meets others."""
    messages = _messages(materialized)
    rows = []
    for number, (row, tasks) in enumerate(zip(materialized.rows, schedule.rows, strict=True)):
        parts = frozenset(
            Part(phase, stage) for stage in row.stages for phase in materialized.stage_phases[stage]
        )
        # a stage with nothing to do in a phase has no such tasks
        own = tuple(task for task in tasks if Part(task.phase, task.stage) in parts)
        rows.append(RowTasks(row_title(number, row.stages), row.stages, parts, own, messages[number]))
    return rows


def _messages(materialized: MaterializedGraph) -> list[dict[Part, list[Message]]]:
    """Per row the messages of each body, in order."""
    stages = materialized.stages
    meetings = _Meetings(
        {device: number for number, row in enumerate(materialized.rows) for device in row.devices}
    )
    found: list[dict[Part, list[Message]]] = [{} for _ in materialized.rows]

    def note(phase: Phase, mesh: Mesh, kind: str, others: Links, name: str, channel: str) -> None:
        part = Part(phase, stages.index(mesh)) if phase.is_repeated else Part(phase)
        for row, rows in others.items():
            found[row].setdefault(part, []).append(Message(kind, rows, name, channel))

    for phase in PHASES:
        for number, event in enumerate(materialized.events[phase]):
            if not isinstance(event, Transfer):
                continue
            before, after = event.step.before.mesh, event.step.after.mesh
            given, taken = meetings.of(event.step)
            if event.step.kind is StepKind.SEND:
                channel = f"{stages.index(before)} to {stages.index(after)}"
            else:
                channel = f"{event.step.kind} {phase}{number}"
            note(phase, before, "send", given, event.read, channel)
            note(phase, after, "receive", taken, event.write, channel)
    return found


Links = Mapping[int, tuple[int, ...]]
"""Row -> the rows it meets."""


@dataclass
class _Meetings:
    """Which rows meet in a step; known once per pair of meshes."""

    row_of: Mapping[int, int]
    known: dict[tuple[StepKind, Mesh, Mesh, str], tuple[Links, Links]] = field(default_factory=dict)

    def of(self, step: Step) -> tuple[Links, Links]:
        """Per row that gives those that take from it, and per row that takes those that give."""
        key = step.kind, step.before.mesh, step.after.mesh, step.axis
        if key not in self.known:
            pairs = list(dict.fromkeys(self._pairs(step)))
            self.known[key] = _links(pairs), _links([(taker, giver) for giver, taker in pairs])
        return self.known[key]

    def _pairs(self, step: Step) -> Iterator[tuple[int, int]]:
        before, after = step.before.mesh, step.after.mesh
        if step.kind is StepKind.SEND:
            ends = zip(before.devices, after.devices, strict=True)
            yield from ((self.row_of[giver], self.row_of[taker]) for giver, taker in ends)
        elif step.kind is StepKind.EXCHANGE:
            givers, takers = ({self.row_of[device] for device in mesh.devices} for mesh in (before, after))
            yield from product(givers, takers)
        elif not step.is_local and len({self.row_of[device] for device in after.devices}) > 1:
            groups = ([self.row_of[other] for other in after.group(step.axis, own)] for own in after.devices)
            yield from ((giver, taker) for rows in groups for giver, taker in permutations(set(rows), 2))


def _links(pairs: Sequence[tuple[int, int]]) -> Links:
    return {row: tuple(sorted(other for own, other in pairs if own == row)) for row, _ in pairs}


def _circle(materialized: MaterializedGraph) -> str | None:
    """Stages that feed each other within one phase, if there are such, in words."""
    for phase in (Phase.FORWARD, Phase.BACKWARD):
        moves = {}
        for event in materialized.events[phase]:
            numbers = [materialized.stages.index(mesh) for mesh in materialized.meshes_of(event)]
            if isinstance(event, Transfer) and len(numbers) == 2:
                moves.setdefault((numbers[0], numbers[1]), event)
        sorter: TopologicalSorter[int] = TopologicalSorter()
        for first, then in moves:
            sorter.add(then, first)
        try:
            sorter.prepare()
        except CycleError as error:
            circle = error.args[1]
            links = [
                f"stage {first} ({materialized.stages[first]}) feeds stage {then} ({materialized.stages[then]}): "
                + moves[first, then].reason
                for first, then in pairwise(circle)
            ]
            return f"in phase {phase} stages feed each other:\n    " + "\n    ".join(links)
    return None
