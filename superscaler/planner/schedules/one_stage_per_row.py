"""Schedules of pipelines with one stage per row of devices: GPipe, which suits any, 1F1B and zero-bubble H1 and H2."""

from collections.abc import Iterable, Iterator

from superscaler.ir.graph import Phase
from superscaler.planner.pipeline import Lanes, Pipeline, ScheduleMaker
from superscaler.planner.schedule import Task
from superscaler.planner.schedules.maker import Named

F, B, W = Phase.FORWARD, Phase.BACKWARD, Phase.WEIGHT


def one_per_row(rows: int) -> Lanes:
    """Stage s is on row s."""
    return Pipeline.chain(rows).lanes


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
    return Named("1f1b", micro_batches, _one_f_one_b_row, one_per_row)


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
    return Named("zb-h1", micro_batches, _zb_h1_row, one_per_row, splits_backward=True)


def _zb_h1_row(pipeline: Pipeline, micro_batches: int, row: int) -> Iterator[Task]:
    after = pipeline.stages_after[row]
    return _zero_bubble(micro_batches, row, 1 + after, max(pipeline.stages_after) - after)


def zb_h2(micro_batches: int) -> ScheduleMaker:
    """As ZB-H1, with twice the memory: forwards also fill the bubble before the first backward (arXiv 2401.10241).

    Raises:
        PlanError: There is not at least one micro-batch.
    """
    return Named("zb-h2", micro_batches, _zb_h2_row, one_per_row, splits_backward=True)


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
