"""Interlaced schedules: a pipeline of stages on one row each, between whose steps all rows run stages together.

All rows are to be there when such a stage runs, so each waits for the slowest.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from superscaler.errors import PlanError
from superscaler.ir.graph import Phase
from superscaler.planner.pipeline import Lanes, Pipeline, ScheduleMaker
from superscaler.planner.schedule import Schedule, Task
from superscaler.planner.schedules.maker import check_micro_batches
from superscaler.planner.schedules.one_stage_per_row import one_f_one_b, one_per_row

F, B = Phase.FORWARD, Phase.BACKWARD


def interlaced(micro_batches: int) -> ScheduleMaker:
    """1F1B of the stages that have a row alone; tasks of stages on all rows come between its steps (SuperScaler).

    For an embedding, or a head, that is too large for one row.

    Raises:
        PlanError: There is not at least one micro-batch.
    """
    return Interlaced("interlaced", micro_batches)


def interlaced_ahead(micro_batches: int) -> ScheduleMaker:
    """Interlaced, a step apart: rows meet once a micro-batch and none waits, in twice the memory (after SuperScaler).

    What a row computes between two such meetings, a forward and a backward, depends on nothing that others compute
    there: a micro-batch rests for a step between one stage and the next.

    Raises:
        PlanError: There is not at least one micro-batch.
    """
    return Interlaced("interlaced-ahead", micro_batches, is_ahead=True)


@dataclass(frozen=True, slots=True)
class Interlaced:
    """The maker of interlaced schedules."""

    name: str
    micro_batches: int
    is_ahead: bool = False
    splits_backward: bool = False
    weighs_costs: bool = False

    def __post_init__(self) -> None:
        check_micro_batches(self.micro_batches)

    def __call__(self, pipeline: Pipeline) -> Schedule:
        """The schedule of a chain of stages of one row each, and of all rows.

        Raises:
            PlanError: A stage is on some rows but not all, or rows have no stage alone.
        """
        wide = (tuple(range(pipeline.num_rows)),)
        narrow = [stage for stage, lanes in enumerate(pipeline.lanes) if lanes != wide]
        if [pipeline.lanes[stage] for stage in narrow] != [((row,),) for row in range(pipeline.num_rows)]:
            raise PlanError(
                f"the schedule {self.name!r} does not suit stages on rows {pipeline.lanes}",
                remedy="it is for one stage per row of devices, in order, and stages on all rows",
            )
        slots = self._slots(Pipeline.chain(len(narrow), pipeline.training))
        times = {
            task: time for i in range(self.micro_batches) for task, time in _times(pipeline, narrow, slots, i)
        }
        ordered = sorted(times, key=lambda task: (times[task], task.micro_batch))
        hosted = [set(pipeline.hosted(row)) for row in range(pipeline.num_rows)]
        rows = tuple(tuple(task for task in ordered if task.stage in stages) for stages in hosted)
        return Schedule(self.name, self.micro_batches, rows)

    def _slots(self, chain: Pipeline) -> dict[Task, int]:
        """Per task of the stages on one row each, the step in which it runs."""
        if not self.is_ahead:
            return _slots(one_f_one_b(self.micro_batches)(chain))
        rows = chain.num_rows
        return {
            task: task.micro_batch + (row if task.phase is F else 2 * rows - 1 - row)
            for row in range(rows)
            for i in range(self.micro_batches)
            for task in (Task(row, F, i), Task(row, B, i))
        }


def _slots(schedule: Schedule) -> dict[Task, int]:
    """When the tasks of a chain run if each takes one slot of time."""
    slots: dict[Task, int] = {}
    last = len(schedule.rows) - 1
    queues = [deque(row) for row in schedule.rows]
    time = 0
    while any(queues):
        now = []
        for stage, queue in enumerate(queues):
            if not queue:
                continue
            other = stage - 1 if queue[0].phase is F else stage + 1
            if (
                not 0 <= other <= last
                or slots.get(Task(other, queue[0].phase, queue[0].micro_batch), time) < time
            ):
                now.append(queue.popleft())
        slots.update((task, time) for task in now)
        time += 1
    return slots


def _times(
    pipeline: Pipeline, narrow: list[int], slots: dict[Task, int], i: int
) -> Iterator[tuple[Task, tuple[int, int]]]:
    """When the tasks of micro-batch i run: in a slot (t, 1), or between slots (t, 0)."""
    chain = [Task(stage, F, i) for stage in range(pipeline.num_stages)]
    backward = filter(pipeline.has_backward, reversed(range(pipeline.num_stages)))
    chain += [Task(stage, B, i) for stage in backward]
    index = {stage: row for row, stage in enumerate(narrow)}
    time = slots[Task(0, F, i)]
    for task in chain:
        if task.stage in index:
            slot = slots[Task(index[task.stage], task.phase, i)]
            yield task, (slot, 1)
            time = slot + 1
        else:
            yield task, (time, 0)


def between_wide(rows: int) -> Lanes:
    """A stage on all rows before those of one row each, and one behind."""
    wide = (tuple(range(rows)),)
    return (wide, *one_per_row(rows), wide)
