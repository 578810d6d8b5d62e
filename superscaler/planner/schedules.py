"""Named schedules; and everything a plan script says about time, as ``ss.schedules``."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from superscaler.errors import PlanError
from superscaler.ir.graph import Phase
from superscaler.ir.source_line import user_line
from superscaler.planner.pipeline import Costs, Pipeline, ScheduleMaker
from superscaler.planner.schedule import Schedule, Task, order_tasks, parse_schedule

__all__ = [
    "NAMED", "Costs", "Given", "NamedSchedule", "Pipeline", "Schedule", "ScheduleMaker", "Task",
    "gpipe", "one_f_one_b", "order_tasks", "parse_schedule",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Given:
    """The maker of a schedule that is there already."""

    schedule: Schedule

    @property
    def name(self) -> str:
        """The schedule's name."""
        return self.schedule.name

    @property
    def micro_batches(self) -> int:
        """Into how many parts the batch is cut."""
        return self.schedule.micro_batches

    @property
    def splits_backward(self) -> bool:
        """Whether gradients of weights are tasks of their own."""
        return self.schedule.splits_backward

    def __call__(self, pipeline: Pipeline) -> Schedule:
        """The schedule, whatever the pipeline."""
        return self.schedule


Row = Callable[[Pipeline, int, int], Iterable[Task]]
"""The tasks of one stage that has its row alone, in order: (pipeline, micro-batches, stage)."""


@dataclass(frozen=True, slots=True)
class ByStage:
    """The maker of a schedule that orders each stage's tasks on its own; every stage has a row alone."""

    name: str
    micro_batches: int
    row: Row = field(repr=False)
    splits_backward: bool = False

    def __post_init__(self) -> None:
        if self.micro_batches < 1:
            raise PlanError(
                f"a schedule of {self.micro_batches} micro-batches",
                where=user_line(),
                remedy="use 1 or more micro-batches",
            )

    def __call__(self, pipeline: Pipeline) -> Schedule:
        """Stage s on row s.

        Raises:
            PlanError: A row hosts several stages, or a stage several rows.
        """
        if pipeline.lanes != Pipeline.chain(pipeline.num_stages).lanes:
            raise PlanError(
                f"the schedule {self.name!r} is for one stage per row of devices",
                remedy="place every stage on devices of its own, in order",
            )
        rows = (self.row(pipeline, self.micro_batches, stage) for stage in range(pipeline.num_stages))
        return Schedule(self.name, self.micro_batches, tuple(map(tuple, rows)))


def gpipe(micro_batches: int) -> ScheduleMaker:
    """All forwards, then all backwards (GPipe, arXiv 1811.06965).

    Raises:
        PlanError: There is not at least one micro-batch.
    """
    return ByStage("gpipe", micro_batches, _gpipe_row)


def _gpipe_row(pipeline: Pipeline, micro_batches: int, stage: int) -> Iterable[Task]:
    yield from (Task(stage, Phase.FORWARD, i) for i in range(micro_batches))
    if pipeline.has_backward(stage):
        yield from (Task(stage, Phase.BACKWARD, i) for i in range(micro_batches))


def one_f_one_b(micro_batches: int) -> ScheduleMaker:
    """One forward, one backward in turn once the pipeline is full (PipeDream-flush, arXiv 2006.09503).

    Raises:
        PlanError: There is not at least one micro-batch.
    """
    return ByStage("1f1b", micro_batches, _one_f_one_b_row)


def _one_f_one_b_row(pipeline: Pipeline, micro_batches: int, stage: int) -> Iterable[Task]:
    if not pipeline.has_backward(stage):
        yield from _gpipe_row(pipeline, micro_batches, stage)
        return
    warm_up = min(pipeline.stages_after[stage], micro_batches)
    yield from (Task(stage, Phase.FORWARD, i) for i in range(warm_up))
    for i in range(micro_batches - warm_up):
        yield Task(stage, Phase.FORWARD, warm_up + i)
        yield Task(stage, Phase.BACKWARD, i)
    yield from (Task(stage, Phase.BACKWARD, i) for i in range(micro_batches - warm_up, micro_batches))


@dataclass(frozen=True, slots=True)
class NamedSchedule:
    """What a plan string knows of a schedule."""

    make: Callable[[int], ScheduleMaker]
    """From a number of micro-batches."""
    pipeline: Callable[[int], Pipeline] = Pipeline.chain
    """From a number of rows, the stages it wants and where it wants them."""


NAMED: dict[str, NamedSchedule] = {"gpipe": NamedSchedule(gpipe), "1f1b": NamedSchedule(one_f_one_b)}
"""Schedules by the name a plan string uses."""
