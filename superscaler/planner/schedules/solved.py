"""The maker of the best schedule that can be found."""

from dataclasses import dataclass, replace

from superscaler.planner.pipeline import Pipeline, ScheduleMaker
from superscaler.planner.schedule import Schedule
from superscaler.planner.schedules.maker import check_micro_batches


@dataclass(frozen=True, slots=True)
class Solved:
    """The maker of the best schedule that can be found."""

    micro_batches: int
    seconds: float
    seed: int
    memory: int | None
    splits_backward: bool
    name: str = "solved"
    weighs_costs: bool = True

    def __post_init__(self) -> None:
        check_micro_batches(self.micro_batches)

    def __call__(self, pipeline: Pipeline) -> Schedule:
        """The schedule of any pipeline.

        Raises:
            PlanError: No order of the tasks fits in memory.
        """
        # whoever does not search does not wait for OR-Tools to load
        from superscaler.planner.solve_schedule import solve_schedule

        if self.memory is not None:
            limits = (self.memory,) * pipeline.num_rows
            pipeline = pipeline.with_costs(replace(pipeline.priced, memory_limit=limits))
        return solve_schedule(
            pipeline, self.micro_batches, self.seconds, self.seed, self.splits_backward
        ).schedule


def solved(
    micro_batches: int,
    seconds: float = 10.0,
    seed: int = 0,
    memory: int | None = None,
    splits_backward: bool = True,
) -> ScheduleMaker:
    """The shortest schedule that can be found in `seconds`, for stages placed in any way (by OR-Tools CP-SAT).

    It is never longer than a named schedule that suits the pipeline, and says how far it may be from the best.

    Args:
        micro_batches: Into how many parts the batch is cut.
        seconds: Of the clock, at most; often a schedule is proved optimal at once.
        seed: The same seed finds the same schedule.
        memory: For activations, on each row of devices, in the unit of the costs (bytes per device in a plan);
            None: what the costs say.
        splits_backward: Whether gradients of weights may run apart from the rest of the backward.

    Raises:
        PlanError: There is not at least one micro-batch.
    """
    return Solved(micro_batches, seconds, seed, memory, splits_backward)
