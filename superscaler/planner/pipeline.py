"""Pipeline: what a schedule is made for: stages, the rows of devices they run on, and what tasks cost."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Protocol

from superscaler.planner.schedule import Schedule

Lanes = tuple[tuple[tuple[int, ...], ...], ...]
"""Per stage and lane the rows that run a task of it together."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What the tasks of each stage take, in any unit of time and any whole unit of memory."""

    forward: tuple[float, ...]
    backward: tuple[float, ...]
    """The part of the backward that other stages wait for: gradients of activations."""
    weight: tuple[float, ...]
    """The rest: gradients of weights. Where the backward is not split, both are one task."""
    activation: tuple[int, ...]
    """Memory one micro-batch takes on each row of the stage from the start of F to the end of B, or of W."""
    weight_activation: tuple[int, ...]
    """... how much W needs, which is free at the end of W; what is left of the above is free at the end of B."""
    latency: Mapping[tuple[int, int], float] = field(default_factory=dict)
    """Edge of the pipeline -> time between the end of a task and the start of the one it feeds, either way."""
    memory_limit: tuple[int, ...] | None = None
    """Per row, the memory for activations."""


@dataclass(frozen=True)
class Pipeline:
    """Stages in an order in which the forward pass can run them, and where each runs."""

    lanes: Lanes
    """An ordinary stage on row r is ``((r,),)``; one spread over four rows, ``((0, 1, 2, 3),)``. With two lanes,
    ``((0,), (3,))``, replicas of the stage on rows 0 and 3 run the same task at times of their own, each on its
    part of the samples; a lane depends on the lane of the same number of the stage before."""
    edges: tuple[tuple[int, int], ...]
    """Which stage feeds which in the forward pass; the backward pass runs them in reverse."""
    training: bool = True
    forward_only: frozenset[int] = frozenset()
    """Stages that have no backward."""
    costs: Costs | None = None
    """None: all tasks of all phases take one unit of time, and a micro-batch one unit of memory."""

    def __post_init__(self) -> None:
        for stage, lanes in enumerate(self.lanes):
            rows = [row for lane in lanes for row in lane]
            assert len(rows) == len(set(rows)) > 0, f"stage {stage} is on rows {lanes}: each once"
        assert all(0 <= first < then < len(self.lanes) for first, then in self.edges), self.edges

    @staticmethod
    def chain(stages: int, training: bool = True) -> "Pipeline":
        """Stages that feed each other in turn, each on a row of its own."""
        return Pipeline(tuple(((row,),) for row in range(stages)), tuple(pairwise(range(stages))), training)

    @property
    def num_stages(self) -> int:
        """How many stages there are."""
        return len(self.lanes)

    @cached_property
    def num_rows(self) -> int:
        """How many rows there are: 0 to this number, less one."""
        return 1 + max(row for lanes in self.lanes for lane in lanes for row in lane)

    def hosted(self, row: int) -> tuple[int, ...]:
        """The stages a row runs tasks of."""
        return tuple(stage for stage, lanes in enumerate(self.lanes) if any(row in lane for lane in lanes))

    def has_backward(self, stage: int) -> bool:
        """Whether the stage has a backward."""
        return self.training and stage not in self.forward_only

    @cached_property
    def stages_after(self) -> tuple[int, ...]:
        """Per stage, how many stages follow it on the longest way to the end of the forward pass."""
        after = [0] * self.num_stages
        for first, then in sorted(self.edges, reverse=True):
            after[first] = max(after[first], 1 + after[then])
        return tuple(after)

    @cached_property
    def priced(self) -> Costs:
        """The costs, in units where none are given."""
        ones = (1,) * self.num_stages
        return self.costs or Costs(ones, ones, ones, ones, ones)

    def with_costs(self, costs: Costs) -> "Pipeline":
        """The same stages at the given costs."""
        return replace(self, costs=costs)


class ScheduleMaker(Protocol):
    """Makes the schedule of a pipeline once its rows are known."""

    @property
    def name(self) -> str:
        """What a plan string or a printed plan calls the schedule."""
        ...

    @property
    def micro_batches(self) -> int:
        """Into how many parts the batch is cut."""
        ...

    @property
    def splits_backward(self) -> bool:
        """Whether gradients of weights are tasks of their own."""
        ...

    @property
    def weighs_costs(self) -> bool:
        """Whether the schedule depends on what tasks take, so that the pipeline must come with its costs."""
        ...

    def __call__(self, pipeline: Pipeline) -> Schedule:
        """The schedule.

        Raises:
            PlanError: The schedule is not for such a pipeline.
        """
        ...
