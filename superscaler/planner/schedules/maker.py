"""Makers of schedules: of those known by name, from the order of one row's tasks; and of one that is there already."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from superscaler.errors import PlanError
from superscaler.ir.graph import Phase
from superscaler.ir.source_line import user_line
from superscaler.planner.pipeline import Lanes, Pipeline
from superscaler.planner.schedule import Schedule, Task


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

    @property
    def weighs_costs(self) -> bool:
        """It is what it is."""
        return False

    def __call__(self, pipeline: Pipeline) -> Schedule:
        """The schedule, whatever the pipeline."""
        return self.schedule


def check_micro_batches(micro_batches: int) -> None:
    """Refuse a schedule of no micro-batch.

    Raises:
        PlanError: There is not at least one.
    """
    if micro_batches < 1:
        raise PlanError(
            f"a schedule of {micro_batches} micro-batches",
            where=user_line(),
            remedy="use 1 or more micro-batches",
        )


RowProgram = Callable[[Pipeline, int, int], Iterable[Task]]
"""The tasks of one row in order, from the pipeline, the number of micro-batches and the row. It may name tasks of
stages that have no backward, and of micro-batches beyond the last: they are left out."""


@dataclass(frozen=True, slots=True)
class Named:
    """The maker of a schedule that is known by name."""

    name: str
    micro_batches: int
    row: RowProgram = field(repr=False)
    form: Callable[[int], Lanes] | None = field(repr=False)
    """From a number of rows to where the stages must be; None: it suits any."""
    form_in_words: str = "one stage per row of devices, in order"
    splits_backward: bool = False
    weighs_costs: bool = False

    def __post_init__(self) -> None:
        check_micro_batches(self.micro_batches)

    def __call__(self, pipeline: Pipeline) -> Schedule:
        """The schedule of a pipeline of its form.

        Raises:
            PlanError: The stages are placed otherwise.
        """
        rows = tuple(map(tuple, self._rows(pipeline)))
        phases = [
            1 + (1 + self.splits_backward) * pipeline.has_backward(s) for s in range(pipeline.num_stages)
        ]
        complete = all(
            len(tasks) == self.micro_batches * sum(phases[stage] for stage in pipeline.hosted(row))
            for row, tasks in enumerate(rows)
        )
        if not rows or not complete:
            raise PlanError(
                f"the schedule {self.name!r} does not suit stages on rows {pipeline.lanes}",
                remedy=f"it is for {self.form_in_words}; ss.schedules.solved(...) is for any",
            )
        return Schedule(self.name, self.micro_batches, rows)

    def _rows(self, pipeline: Pipeline) -> Iterator[Iterator[Task]]:
        if self.form is not None and pipeline.lanes != self.form(pipeline.num_rows):
            return
        for row in range(pipeline.num_rows):
            yield (
                task
                for task in self.row(pipeline, self.micro_batches, row)
                if task.micro_batch < self.micro_batches
                and (task.phase is Phase.FORWARD or pipeline.has_backward(task.stage))
            )
