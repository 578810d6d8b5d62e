"""TaskGraph: the scheduling problem of a Pipeline: runs of tasks with durations, rows, precedence and memory.

All micro-batches are alike, so the graph is as many copies of one micro-batch's: run ``i * size + k`` is run k of
micro-batch i. Times are whole ticks. Of runs that differ in the micro-batch alone, the earlier one goes first:
exchanging the micro-batches of two of them changes neither times nor memory, so no schedule is lost.
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

from superscaler.ir.graph import Phase
from superscaler.planner.pipeline import Costs, Pipeline
from superscaler.planner.schedule import Task

TICKS = 10_000
"""Ticks the busiest row works for one micro-batch where durations are no whole numbers: precise to 0.01 %."""


@dataclass(frozen=True)
class Run:
    """One lane's run of a task of micro-batch 0."""

    stage: int
    phase: Phase
    lane: int
    duration: int
    """In ticks."""
    rows: tuple[int, ...]
    """The rows it keeps busy, all of them together."""
    before: tuple[tuple[int, int], ...]
    """Numbers of the runs that must have ended, and how many ticks earlier."""


@dataclass(frozen=True)
class Hold:
    """Memory of one micro-batch on every row of a stage's lane."""

    taken_by: int
    """The run of micro-batch 0 at whose start it is taken."""
    freed_by: int
    """The run at whose end it is free."""
    amount: int


@dataclass(frozen=True)
class TaskGraph:
    """What is to be scheduled."""

    pipeline: Pipeline
    micro_batches: int
    runs: tuple[Run, ...]
    """Those of one micro-batch, each after those it depends on."""
    holds: tuple[Hold, ...]
    """What one micro-batch keeps in memory."""
    limits: tuple[int, ...] | None
    """Memory of each row; None: without limit."""
    tick: float
    """Length of a tick in the units of the costs."""

    @property
    def size(self) -> int:
        """How many runs a micro-batch has."""
        return len(self.runs)

    @property
    def num_runs(self) -> int:
        """How many runs there are in all."""
        return self.size * self.micro_batches

    def run(self, number: int) -> Run:
        """What the run does, whatever its micro-batch."""
        return self.runs[number % self.size]

    def task(self, number: int) -> Task:
        """The task of a run."""
        run = self.run(number)
        return Task(run.stage, run.phase, number // self.size)

    @cached_property
    def after(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Per run of a micro-batch the runs that wait for it, and how many ticks they wait after its end."""
        after: list[list[tuple[int, int]]] = [[] for _ in self.runs]
        for number, run in enumerate(self.runs):
            for other, wait in run.before:
                after[other].append((number, wait))
        return tuple(map(tuple, after))

    @cached_property
    def hosted(self) -> tuple[tuple[int, ...], ...]:
        """Per row its runs of a micro-batch."""
        hosted: list[list[int]] = [[] for _ in range(self.pipeline.num_rows)]
        for number, run in enumerate(self.runs):
            for row in run.rows:
                hosted[row].append(number)
        return tuple(map(tuple, hosted))

    @cached_property
    def loads(self) -> tuple[int, ...]:
        """Per row the ticks it works for a micro-batch."""
        return tuple(sum(self.runs[number].duration for number in numbers) for numbers in self.hosted)

    @cached_property
    def takes(self) -> tuple[int, ...]:
        """Per run of a micro-batch the memory it takes on each of its rows when it starts."""
        return tuple(
            sum(hold.amount for hold in self.holds if hold.taken_by == number) for number in range(self.size)
        )

    @cached_property
    def frees(self) -> tuple[int, ...]:
        """Per run of a micro-batch the memory that is free on each of its rows when it ends."""
        return tuple(
            sum(hold.amount for hold in self.holds if hold.freed_by == number) for number in range(self.size)
        )

    @cached_property
    def reversed(self) -> "TaskGraph":
        """The same problem with time running backwards: its run n is this one's run ``num_runs - 1 - n``."""
        last = self.size - 1
        runs = tuple(
            replace(run, before=tuple((last - other, wait) for other, wait in self.after[number]))
            for number, run in enumerate(self.runs)
        )
        holds = tuple(Hold(last - hold.freed_by, last - hold.taken_by, hold.amount) for hold in self.holds)
        return replace(self, runs=runs[::-1], holds=holds)


def task_graph(pipeline: Pipeline, micro_batches: int, splits_backward: bool) -> TaskGraph:
    """The problem of running `micro_batches` through a pipeline."""
    costs = pipeline.priced
    ticks = _ticks(pipeline, costs)
    keys = [(stage, Phase.FORWARD) for stage in range(pipeline.num_stages)]
    backward = (Phase.BACKWARD, Phase.WEIGHT) if splits_backward else (Phase.BACKWARD,)
    for stage in reversed(range(pipeline.num_stages)):
        keys += [(stage, phase) for phase in backward if pipeline.has_backward(stage)]
    numbers: dict[tuple[int, Phase, int], int] = {}
    for stage, phase in keys:
        for lane in range(len(pipeline.lanes[stage])):
            numbers[stage, phase, lane] = len(numbers)
    runs = []
    for stage, phase, lane in numbers:
        duration = _duration(costs, stage, phase, splits_backward)
        before = tuple(
            (numbers[key], round(latency * ticks))
            for key, latency in _needs(pipeline, costs, stage, phase, lane)
        )
        rows = pipeline.lanes[stage][lane]
        runs.append(Run(stage, phase, lane, round(duration * ticks), rows, before))
    limits = None if costs.memory_limit is None else tuple(costs.memory_limit)
    holds = _holds(costs, numbers, splits_backward)
    return TaskGraph(pipeline, micro_batches, tuple(runs), holds, limits, 1 / ticks)


def _ticks(pipeline: Pipeline, costs: Costs) -> float:
    """How many ticks a unit of time is."""
    durations = [*costs.forward, *costs.backward, *costs.weight, *costs.latency.values()]
    if all(Fraction(duration).denominator == 1 for duration in durations):
        return 1
    works = [0.0] * pipeline.num_rows
    for stage, lanes in enumerate(pipeline.lanes):
        work = costs.forward[stage] + costs.backward[stage] + costs.weight[stage]
        for row in (row for lane in lanes for row in lane):
            works[row] += work
    return TICKS / max(works)


def _duration(costs: Costs, stage: int, phase: Phase, splits_backward: bool) -> float:
    if phase is Phase.FORWARD:
        return costs.forward[stage]
    if phase is Phase.WEIGHT:
        return costs.weight[stage]
    return costs.backward[stage] + (0 if splits_backward else costs.weight[stage])


def _holds(
    costs: Costs, numbers: dict[tuple[int, Phase, int], int], splits_backward: bool
) -> tuple[Hold, ...]:
    """Activations: from F to B; what W needs from F (or from B, where it is more than F leaves) to W."""
    holds = []
    for (stage, phase, lane), backward in numbers.items():
        if phase is not Phase.BACKWARD:
            continue
        forward = numbers[stage, Phase.FORWARD, lane]
        whole, late = costs.activation[stage], costs.weight_activation[stage]
        if not splits_backward:
            holds.append(Hold(forward, backward, whole))
            continue
        weight = numbers[stage, Phase.WEIGHT, lane]
        holds += [
            Hold(forward, backward, max(0, whole - late)),
            Hold(forward, weight, min(whole, late)),
            Hold(backward, weight, max(0, late - whole)),
        ]
    return tuple(hold for hold in holds if hold.amount)


def _needs(
    pipeline: Pipeline, costs: Costs, stage: int, phase: Phase, lane: int
) -> list[tuple[tuple[int, Phase, int], float]]:
    """The runs a run depends on, with the latency in between."""
    if phase is Phase.WEIGHT:
        return [((stage, Phase.BACKWARD, lane), 0)]
    own = [((stage, Phase.FORWARD, lane), 0.0)] if phase is Phase.BACKWARD else []
    fed_by = [
        (first if phase is Phase.FORWARD else then, costs.latency.get((first, then), 0.0))
        for first, then in pipeline.edges
        if stage == (then if phase is Phase.FORWARD else first)
    ]
    return own + [
        ((other, phase, other_lane), latency)
        for other, latency in fed_by
        if phase is Phase.FORWARD or pipeline.has_backward(other)
        for other_lane in _lanes(pipeline, stage, lane, other)
    ]


def _lanes(pipeline: Pipeline, stage: int, lane: int, other: int) -> range:
    """Lanes of another stage that a lane exchanges data with: its own number, or all where numbers differ."""
    count = len(pipeline.lanes[other])
    return range(lane, lane + 1) if count == len(pipeline.lanes[stage]) else range(count)
