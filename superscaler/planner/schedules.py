"""Named schedules as short programs of orders; and everything a plan script says about time, ``ss.schedules``.

Every named schedule is for a pipeline of a certain form: which rows of devices run which stages, see `NAMED`.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise

from superscaler.errors import PlanError
from superscaler.ir.graph import Phase
from superscaler.ir.source_line import user_line
from superscaler.planner.pipeline import Costs, Lanes, Pipeline, ScheduleMaker
from superscaler.planner.schedule import Schedule, Task, order_tasks, parse_schedule

__all__ = [
    "NAMED", "Costs", "Given", "NamedSchedule", "Pipeline", "Schedule", "ScheduleMaker", "Task", "bidirectional",
    "gpipe", "interlaced", "interleaved", "one_f_one_b", "order_tasks", "parse_schedule", "solved", "three_f_one_b",
    "zb_h1", "zb_h2", "zb_v",
]  # fmt: skip

F, B, W = Phase.FORWARD, Phase.BACKWARD, Phase.WEIGHT


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


def _check_count(micro_batches: int) -> None:
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
        _check_count(self.micro_batches)

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
                and (task.phase is F or pipeline.has_backward(task.stage))
            )


def _one_per_row(rows: int) -> Lanes:
    return Pipeline.chain(rows).lanes


# one stage per row


def gpipe(micro_batches: int) -> ScheduleMaker:
    """All forwards, then all backwards, wherever the stages are (GPipe, arXiv 1811.06965).

    Raises:
        PlanError: There is not at least one micro-batch.
    """
    return Named("gpipe", micro_batches, _gpipe_row, None)


def _gpipe_row(pipeline: Pipeline, micro_batches: int, row: int) -> Iterable[Task]:
    there = pipeline.hosted(row)
    back = there[::-1]
    return [
        Task(stage, phase, i)
        for phase, stages in ((F, there), (B, back))
        for i in range(micro_batches)
        for stage in stages
    ]


def one_f_one_b(micro_batches: int) -> ScheduleMaker:
    """One forward, one backward in turn once the pipeline is full (PipeDream-flush, arXiv 2006.09503).

    Raises:
        PlanError: There is not at least one micro-batch.
    """
    return Named("1f1b", micro_batches, _one_f_one_b_row, _one_per_row)


def _one_f_one_b_row(pipeline: Pipeline, micro_batches: int, row: int) -> Iterator[Task]:
    warm_up = min(pipeline.stages_after[row], micro_batches)
    yield from (Task(row, F, i) for i in range(warm_up))
    for i in range(micro_batches):
        yield Task(row, F, warm_up + i)
        yield Task(row, B, i)


def zb_h1(micro_batches: int) -> ScheduleMaker:
    """1F1B whose weight gradients fill the bubble, in the memory of 1F1B's first stage (arXiv 2401.10241).

    Raises:
        PlanError: There is not at least one micro-batch.
    """
    return Named("zb-h1", micro_batches, _zb_h1_row, _one_per_row, splits_backward=True)


def _zb_h1_row(pipeline: Pipeline, micro_batches: int, row: int) -> Iterator[Task]:
    after = pipeline.stages_after[row]
    return _zero_bubble(micro_batches, row, 1 + after, max(pipeline.stages_after) - after)


def zb_h2(micro_batches: int) -> ScheduleMaker:
    """As ZB-H1, with twice the memory: forwards also fill the bubble before the first backward (arXiv 2401.10241).

    Raises:
        PlanError: There is not at least one micro-batch.
    """
    return Named("zb-h2", micro_batches, _zb_h2_row, _one_per_row, splits_backward=True)


def _zb_h2_row(pipeline: Pipeline, micro_batches: int, row: int) -> Iterator[Task]:
    after = pipeline.stages_after[row]
    return _zero_bubble(micro_batches, row, 1 + 2 * after, 2 * (max(pipeline.stages_after) - after))


def _zero_bubble(micro_batches: int, stage: int, warm_up: int, delay: int) -> Iterator[Task]:
    """Forwards to warm up, then F and B in turn; W follows `delay` micro-batches behind B."""
    yield from (Task(stage, F, i) for i in range(warm_up))
    for i in range(micro_batches):
        yield Task(stage, B, i)
        if i >= delay:
            yield Task(stage, W, i - delay)
        yield Task(stage, F, warm_up + i)
    yield from (Task(stage, W, i) for i in range(max(0, micro_batches - delay), micro_batches))


# several stages per row


def interleaved(micro_batches: int, per_row: int = 2) -> ScheduleMaker:
    """1F1B with several stages per row: stage s is on row s % p (arXiv 2104.04473).

    Micro-batches go round in groups of p; of a last group that is not full, what is missing is left out.

    Raises:
        PlanError: There is not at least one micro-batch, or one stage per row.
    """
    if per_row < 1:
        raise PlanError(
            f"an interleaved schedule of {per_row} stages per row", where=user_line(), remedy="use 2 or more"
        )

    def row_program(pipeline: Pipeline, micro_batches: int, row: int) -> Iterator[Task]:
        rows = pipeline.num_rows
        steps = [
            (round_of_stages, i)
            for first in range(0, micro_batches, rows)
            for round_of_stages in range(per_row)
            for i in range(first, first + rows)
        ]
        warm_up = min(2 * (rows - row - 1) + (per_row - 1) * rows, len(steps))
        forwards = [Task(chunk * rows + row, F, i) for chunk, i in steps]
        backwards = [Task((per_row - 1 - chunk) * rows + row, B, i) for chunk, i in steps]
        yield from forwards[:warm_up]
        for forward, backward in zip(forwards[warm_up:], backwards, strict=False):
            yield forward
            yield backward
        yield from backwards[len(forwards) - warm_up :]

    def form(rows: int) -> Lanes:
        return tuple(((stage % rows,),) for stage in range(per_row * rows))

    words = f"{per_row} stages per row of devices, stage s on row s % rows"
    return Named("interleaved", micro_batches, row_program, form, words)


def zb_v(micro_batches: int) -> ScheduleMaker:
    """Two stages per row, there and back: no bubble in the memory of 1F1B (arXiv 2405.15362).

    Raises:
        PlanError: There is not at least one micro-batch.
    """
    words = "two stages per row of devices: stage s on row s, or on row 2 * rows - 1 - s"
    return Named("zb-v", micro_batches, _zb_v_row, _there_and_back, words, splits_backward=True)


def _there_and_back(rows: int) -> Lanes:
    return tuple(((min(stage, 2 * rows - 1 - stage),),) for stage in range(2 * rows))


def _zb_v_row(pipeline: Pipeline, micro_batches: int, row: int) -> Iterator[Task]:
    rows = pipeline.num_rows
    there, back = _Stage(row), _Stage(2 * rows - 1 - row)
    yield from there.take((2 * (rows - row) - 1) * "F")
    for _ in range(row):
        yield from back.take("F")
        yield from there.take("F")
    yield from back.take((rows - row) * "FBW")
    while there.backwards < micro_batches - rows:
        yield from there.take("FBW")
        yield from back.take("FBW")
    for _ in range(row):
        yield from there.take("B")
        yield from back.take("B")
    yield from there.take((rows - row) * "BW")
    yield from back.take("W" * (back.backwards - back.weights))
    yield from there.take("W" * (there.backwards - there.weights))


@dataclass(slots=True)
class _Stage:
    """Counts the micro-batches of one stage."""

    stage: int
    forwards: int = 0
    backwards: int = 0
    weights: int = 0

    def take(self, phases: str) -> Iterator[Task]:
        """The next task of each phase in turn."""
        for phase in phases:
            match phase:
                case "F":
                    yield Task(self.stage, F, self.forwards)
                    self.forwards += 1
                case "B":
                    yield Task(self.stage, B, self.backwards)
                    self.backwards += 1
                case _:
                    yield Task(self.stage, W, self.weights)
                    self.weights += 1


def three_f_one_b(micro_batches: int, passes: int = 3) -> ScheduleMaker:
    """Several passes over the same rows, of which the last has a backward (SuperScaler's 3F1B, for recycling).

    Stage ``k * p + s`` is pass k on row s. In the steady state a row runs one forward of each pass and one backward.

    Raises:
        PlanError: There is not at least one micro-batch.
    """

    def row_program(pipeline: Pipeline, micro_batches: int, row: int) -> Iterator[Task]:
        rows = pipeline.num_rows
        ahead = [(passes - k) * rows - 1 - row for k in range(passes)]
        for i in range(-ahead[0], micro_batches):
            yield from (Task(k * rows + row, F, i + ahead[k]) for k in range(passes) if i + ahead[k] >= 0)
            if i >= 0:
                # what is before the layers may have a backward, and then is in the first pass
                yield from (Task(k * rows + row, B, i) for k in reversed(range(passes)))

    def form(rows: int) -> Lanes:
        return tuple(((stage % rows,),) for stage in range(passes * rows))

    return Named(
        "3f1b",
        micro_batches,
        row_program,
        form,
        f"{passes} passes over the same rows of devices, the last with a backward",
    )


# lanes, and stages on several rows


def bidirectional(micro_batches: int) -> ScheduleMaker:
    """Two replicas of the model, each from its end of the rows (DualPipe, arXiv 2412.19437).

    Each replica is a lane: it computes one half of the samples of every micro-batch, so that a step has as many
    tasks as DualPipe with twice the micro-batches. Gradients of the two are added up as over any replicas.

    Raises:
        PlanError: There is not at least one micro-batch.
    """
    words = "two lanes per stage on an even number of rows: stage s on row s, and on row rows - 1 - s"
    return Named("bidirectional", micro_batches, _bidirectional_row, _both_ways, words, splits_backward=True)


def _both_ways(rows: int) -> Lanes:
    return tuple(((stage,), (rows - 1 - stage,)) for stage in range(rows)) if rows % 2 == 0 else ()


def _bidirectional_row(pipeline: Pipeline, micro_batches: int, row: int) -> Iterator[Task]:
    rows = pipeline.num_rows
    from_end = min(row, rows - 1 - row)
    to_middle = rows // 2 - 1 - from_end
    near, far = _Stage(from_end), _Stage(rows - 1 - from_end)
    late: deque[Task] = deque()

    def backward(stage: _Stage) -> Iterator[Task]:
        """A backward whose weight gradients come later."""
        yield from stage.take("B")
        late.extend(stage.take("W"))

    yield from near.take(2 * to_middle * "F")
    for _ in range(from_end + 1):
        yield from near.take("F")
        yield from far.take("F")
    yield from far.take(to_middle * "BWF")
    for _ in range(max(micro_batches, rows) - rows + from_end + 1):
        yield from near.take("F")
        yield from far.take("BWF")
        yield from near.take("BW")
    for _ in range(to_middle):
        yield from far.take("BWF" if far.forwards < max(micro_batches, rows) else "BW")
        yield from near.take("BW")
    turns = [far, near] * (from_end + 1)
    for i, stage in enumerate(turns):
        yield from stage.take("BW") if i <= from_end else backward(stage)
    for _ in range(to_middle):
        yield late.popleft()
        yield from backward(near)
    yield from late


def interlaced(micro_batches: int) -> ScheduleMaker:
    """1F1B of the stages that have a row alone; tasks of stages on all rows come between its steps (SuperScaler).

    For an embedding, or a head, that is too large for one row.

    Raises:
        PlanError: There is not at least one micro-batch.
    """
    return Interlaced(micro_batches)


@dataclass(frozen=True, slots=True)
class Interlaced:
    """The maker of interlaced schedules."""

    micro_batches: int
    name: str = "interlaced"
    splits_backward: bool = False
    weighs_costs: bool = False

    def __post_init__(self) -> None:
        _check_count(self.micro_batches)

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
        slots = _slots(one_f_one_b(self.micro_batches)(Pipeline.chain(len(narrow), pipeline.training)))
        times = {
            task: time for i in range(self.micro_batches) for task, time in _times(pipeline, narrow, slots, i)
        }
        ordered = sorted(times, key=lambda task: (times[task], task.micro_batch))
        hosted = [set(pipeline.hosted(row)) for row in range(pipeline.num_rows)]
        rows = tuple(tuple(task for task in ordered if task.stage in stages) for stages in hosted)
        return Schedule(self.name, self.micro_batches, rows)


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


# by search


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
        _check_count(self.micro_batches)

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


# by name


@dataclass(frozen=True, slots=True)
class NamedSchedule:
    """What a plan string knows of a schedule."""

    make: Callable[[int], ScheduleMaker]
    """From a number of micro-batches."""
    pipeline: Callable[[int], Pipeline] = Pipeline.chain
    """From a number of rows, the stages it wants and where it wants them."""


def _chain_of(lanes: Callable[[int], Lanes]) -> Callable[[int], Pipeline]:
    """A pipeline of stages that feed each other in turn."""

    def pipeline(rows: int) -> Pipeline:
        placed = lanes(rows)
        return Pipeline(placed, tuple(pairwise(range(len(placed)))))

    return pipeline


def _passes(rows: int) -> Pipeline:
    lanes = tuple(((stage % rows,),) for stage in range(3 * rows))
    return Pipeline(lanes, tuple(pairwise(range(3 * rows))), forward_only=frozenset(range(2 * rows)))


def _between_wide(rows: int) -> Lanes:
    wide = (tuple(range(rows)),)
    return (wide, *_one_per_row(rows), wide)


NAMED: dict[str, NamedSchedule] = {
    "gpipe": NamedSchedule(gpipe),
    "1f1b": NamedSchedule(one_f_one_b),
    "interleaved": NamedSchedule(
        interleaved, _chain_of(lambda rows: tuple(((stage % rows,),) for stage in range(2 * rows)))
    ),
    "zb-h1": NamedSchedule(zb_h1),
    "zb-h2": NamedSchedule(zb_h2),
    "zb-v": NamedSchedule(zb_v, _chain_of(_there_and_back)),
    "bidirectional": NamedSchedule(bidirectional, _chain_of(_both_ways)),
    "3f1b": NamedSchedule(three_f_one_b, _passes),
    "interlaced": NamedSchedule(interlaced, _chain_of(_between_wide)),
    "solved": NamedSchedule(solved),
}
"""Schedules by the name a plan string uses."""
