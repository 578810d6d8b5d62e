"""Schedules of pipelines with several stages per row of devices: interleaved, ZB-V, 3F1B, and from both ends."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from superscaler.errors import PlanError
from superscaler.ir.graph import Phase
from superscaler.ir.source_line import user_line
from superscaler.planner.pipeline import Lanes, Pipeline, ScheduleMaker
from superscaler.planner.schedule import Task
from superscaler.planner.schedules.maker import Named

F, B, W = Phase.FORWARD, Phase.BACKWARD, Phase.WEIGHT


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
    return Named("zb-v", micro_batches, _zb_v_row, there_and_back, words, splits_backward=True)


def there_and_back(rows: int) -> Lanes:
    """Stage s is on row s, and further stages come back in a V."""
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


def bidirectional(micro_batches: int) -> ScheduleMaker:
    """Two replicas of the model, each from its end of the rows (DualPipe, arXiv 2412.19437).

    Each replica is a lane: it computes one half of the samples of every micro-batch, so that a step has as many
    tasks as DualPipe with twice the micro-batches. Gradients of the two are added up as over any replicas.

    Raises:
        PlanError: There is not at least one micro-batch.
    """
    words = "two lanes per stage on an even number of rows: stage s on row s, and on row rows - 1 - s"
    return Named("bidirectional", micro_batches, _bidirectional_row, both_ways, words, splits_backward=True)


def both_ways(rows: int) -> Lanes:
    """Stage s has two lanes, one counted from either end; of an odd number of rows there are none."""
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
