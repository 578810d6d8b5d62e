"""Check of a schedule: the tasks of a plan, run on the messages its events stand for, come to their end.

A schedule may be the user's own, or one that is known by name, for stages placed in a way it was not made for.
"""

from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

from superscaler.errors import PlanError
from superscaler.ir.graph import Phase
from superscaler.ir.mesh import Mesh
from superscaler.planner.materialize import PHASES, MaterializedGraph, Transfer
from superscaler.planner.progress import Message, Part, RowTasks, find_stop, row_title
from superscaler.planner.schedule import Schedule
from superscaler.planner.steps import StepKind


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
    row_of = {device: number for number, row in enumerate(materialized.rows) for device in row.devices}
    found: list[dict[Part, list[Message]]] = [{} for _ in materialized.rows]

    def note(
        phase: Phase, mesh: Mesh, kind: str, pairs: Sequence[tuple[int, int]], name: str, channel: str
    ) -> None:
        """Note a message of every row of a mesh to those it is paired with."""
        others: dict[int, dict[int, None]] = {}
        for own, other in pairs:
            others.setdefault(row_of[own], {})[row_of[other]] = None
        part = Part(phase, materialized.stages.index(mesh)) if phase.is_repeated else Part(phase)
        for row, rows in others.items():
            found[row].setdefault(part, []).append(Message(kind, tuple(sorted(rows)), name, channel))

    for phase in PHASES:
        for number, event in enumerate(materialized.events[phase]):
            if not isinstance(event, Transfer):
                continue
            step = event.step
            before, after = step.before.mesh, step.after.mesh
            if step.kind is StepKind.SEND:
                pairs = list(zip(before.devices, after.devices, strict=True))
                channel = f"{materialized.stages.index(before)} to {materialized.stages.index(after)}"
            elif step.kind is StepKind.EXCHANGE:
                pairs = [(one, other) for one in before.devices for other in after.devices]
                channel = f"exchange {phase}{number}"
            elif step.is_local:
                continue
            else:
                pairs = [
                    (one, other)
                    for one in after.devices
                    for other in after.group(step.axis, one)
                    if row_of[one] != row_of[other]
                ]
                channel = f"collective {phase}{number}"
            note(phase, before, "send", pairs, event.read, channel)
            note(phase, after, "receive", [(other, one) for one, other in pairs], event.write, channel)
    return found


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
