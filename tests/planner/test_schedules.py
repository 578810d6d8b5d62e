"""Named schedules against brute force and against the figures their papers publish."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superscaler.errors import PlanError
from superscaler.ir.graph import Phase
from superscaler.planner.pipeline import Costs, Pipeline
from superscaler.planner.schedule import Task
from superscaler.planner.schedules import NAMED, gpipe, interleaved, one_f_one_b, three_f_one_b, zb_h1
from superscaler.planner.task_graph import task_graph
from superscaler.planner.timeline import timeline

SHAPES = [(stages, count) for stages in range(1, 6) for count in range(1, 9)]


def run(schedule):
    """Execute the rows in unit-time tasks, each waiting for its data: when each task ends, or a deadlock."""
    ends, position, clock = {}, [0] * len(schedule.rows), 0
    last = len(schedule.rows) - 1
    while any(position[stage] < len(row) for stage, row in enumerate(schedule.rows)):
        clock += 1
        started = []
        for stage, row in enumerate(schedule.rows):
            if position[stage] == len(row):
                continue
            task = row[position[stage]]
            if task.phase is Phase.FORWARD:
                needs = [Task(stage - 1, Phase.FORWARD, task.micro_batch)] if stage else []
            else:
                needs = [Task(stage, Phase.FORWARD, task.micro_batch)]
                needs += [Task(stage + 1, Phase.BACKWARD, task.micro_batch)] if stage < last else []
            if all(ends.get(need, clock) < clock for need in needs):
                started.append(task)
        assert started, f"deadlock after {clock}"
        for task in started:
            ends[task] = clock
            position[task.stage] += 1
    return ends


def in_flight(row):
    """The most micro-batches whose forward has run and whose backward has not."""
    most = now = 0
    for task in row:
        now += 1 if task.phase is Phase.FORWARD else -1
        most = max(most, now)
    return most


@pytest.mark.parametrize("make", [gpipe, one_f_one_b])
def test_each_stage_runs_every_task_once_without_deadlock_in_the_least_time(make):
    for stages, count in SHAPES:
        schedule = make(count)(Pipeline.chain(stages))
        for stage, row in enumerate(schedule.rows):
            assert sorted(row) == sorted(
                Task(stage, phase, i) for phase in (Phase.FORWARD, Phase.BACKWARD) for i in range(count)
            )
        assert max(run(schedule).values()) == 2 * (count + stages - 1), (
            "m forwards, m backwards and the bubble"
        )


def test_one_f_one_b_holds_no_more_micro_batches_than_stages_that_follow():
    for stages, count in SHAPES:
        rows = one_f_one_b(count)(Pipeline.chain(stages)).rows
        assert [in_flight(row) for row in rows] == [min(count, stages - stage) for stage in range(stages)]
        assert [in_flight(row) for row in gpipe(count)(Pipeline.chain(stages)).rows] == [count] * stages


def test_inference_only_runs_forwards():
    for make in (gpipe, one_f_one_b):
        rows = make(3)(Pipeline.chain(2, training=False)).rows
        assert [[str(task) for task in row] for row in rows] == [["F0", "F1", "F2"]] * 2


def test_a_row_with_two_stages_suits_no_schedule_of_one_stage_per_row():
    folded = Pipeline((((0,),), ((0,),)), ((0, 1),))
    for make in (one_f_one_b, zb_h1):
        with pytest.raises(PlanError, match="does not suit stages"):
            make(2)(folded)
    assert str(gpipe(2)(folded)) == "row 0: 0F0 1F0 0F1 1F1 1B0 0B0 1B1 0B1"


def test_a_schedule_has_a_micro_batch():
    for make in (gpipe, one_f_one_b):
        with pytest.raises(PlanError, match="0 micro-batches"):
            make(0)


# published figures, in thirds: F, B for activations and W all take 1, so that a whole backward takes 2


def timed(name, rows, micro_batches):
    entry = NAMED[name]
    maker, pipeline = entry.make(micro_batches), entry.pipeline(rows)
    return timeline(task_graph(pipeline, micro_batches, maker.splits_backward), maker(pipeline))


BUBBLES = {
    "gpipe": lambda p: 3 * (p - 1),
    "1f1b": lambda p: 3 * (p - 1),
    "interleaved": lambda p: 3 * (p - 1),  # of stages half as large
    "zb-h1": lambda p: p - 1,
    "zb-h2": lambda p: 0,
    "zb-v": lambda p: 0,
    "bidirectional": lambda p: p // 2 - 1,
    "3f1b": lambda p: 3 * (p - 1),
}
PEAKS = {
    "gpipe": lambda p, m: m,
    "1f1b": lambda p, m: p,
    "interleaved": lambda p, m: 2 * p + p - 1,  # of stages half as large
    "zb-h1": lambda p, m: p,
    "zb-h2": lambda p, m: 2 * p - 1,
    "zb-v": lambda p, m: 2 * p,  # likewise
    "bidirectional": lambda p, m: p + 1,
    "3f1b": lambda p, m: p,
}


@pytest.mark.parametrize("name", BUBBLES)
@pytest.mark.parametrize("rows", [2, 4, 8])
def test_bubble_and_memory_are_as_published(name, rows):
    for micro_batches in (2 * rows, 4 * rows):
        made = timed(name, rows, micro_batches)
        assert max(made.bubbles) == BUBBLES[name](rows)
        assert max(made.peaks) == PEAKS[name](rows, micro_batches)


def test_dual_pipe_overlaps_no_worse_than_its_formula():
    """(p / 2 - 1) (F&B + B - 3W), where a forward and a backward run as one: here one after the other."""
    for rows in (2, 4, 6, 8, 10):
        assert max(timed("bidirectional", rows, 2 * rows).bubbles) <= (rows // 2 - 1) * (3 + 2 - 3)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(NAMED)), st.integers(1, 7), st.integers(1, 20))
def test_every_named_schedule_runs_to_its_end_for_any_rows_and_micro_batches(name, rows, micro_batches):
    rows = 2 * rows if name == "bidirectional" else max(2, rows) if "interlaced" in name else rows
    made = timed(name, rows, micro_batches)
    assert made.makespan >= max(made.graph.loads) * micro_batches


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(1, 5), st.integers(1, 13), st.integers(1, 4))
def test_any_number_of_stages_per_row_and_of_passes(rows, micro_batches, count):
    for maker in (interleaved(micro_batches, count), three_f_one_b(micro_batches, count)):
        recycled = range(rows * (count - 1)) if maker.name == "3f1b" else ()
        edges = tuple((stage, stage + 1) for stage in range(rows * count - 1))
        pipeline = Pipeline(maker.form(rows), edges, forward_only=frozenset(recycled))
        timeline(task_graph(pipeline, micro_batches, False), maker(pipeline))


@pytest.mark.parametrize("name", NAMED)
def test_inference_runs_every_forward_and_nothing_else(name):
    pipeline = NAMED[name].pipeline(4)
    forward = Pipeline(pipeline.lanes, pipeline.edges, training=False)
    schedule = NAMED[name].make(5)(forward)
    assert {task.phase for row in schedule.rows for task in row} == {Phase.FORWARD}
    timeline(task_graph(forward, 5, schedule.splits_backward), schedule)


def test_tasks_on_all_rows_come_between_the_steps_of_1f1b():
    rows = NAMED["interlaced"].make(2)(NAMED["interlaced"].pipeline(2)).rows
    assert [" ".join(f"{task.stage}{task}" for task in row) for row in rows] == [
        "0F0 1F0 0F1 1F1 3F0 3B0 1B0 0B0 3F1 3B1 1B1 0B1",
        "0F0 0F1 2F0 3F0 3B0 2B0 2F1 0B0 3F1 3B1 2B1 0B1",
    ]


@pytest.mark.parametrize("rows", [2, 4, 8])
@pytest.mark.parametrize("micro_batches", [8, 32])
def test_a_step_apart_rows_that_meet_wait_for_none_in_twice_the_memory(rows, micro_batches):
    """Beside what all rows do together, as long as 1F1B; where rows meet every step, each step is a backward's."""
    forward, backward, wide = 10, 20, 3
    made = {}
    for name in ("interlaced", "interlaced-ahead"):
        pipeline = NAMED[name].pipeline(rows)
        costs = Costs(
            (wide, *(forward,) * rows, wide), (wide, *(backward,) * rows, wide), (0,) * (rows + 2),
            (0, *(1,) * rows, 0), (0,) * (rows + 2),
        )  # fmt: skip
        pipeline = pipeline.with_costs(costs)
        made[name] = timeline(
            task_graph(pipeline, micro_batches, False), NAMED[name].make(micro_batches)(pipeline)
        )
    alone = (micro_batches + rows - 1) * (forward + backward)
    assert made["interlaced-ahead"].makespan == alone + micro_batches * 4 * wide
    assert made["interlaced-ahead"].makespan < made["interlaced"].makespan
    assert max(made["interlaced"].peaks) == min(rows, micro_batches)
    assert max(made["interlaced-ahead"].peaks) == min(2 * rows - 1, micro_batches)


@pytest.mark.parametrize("name", ["interleaved", "zb-v", "bidirectional", "3f1b"])
def test_stages_placed_otherwise_are_refused(name):
    with pytest.raises(PlanError, match="does not suit stages"):
        NAMED[name].make(2)(Pipeline.chain(4))
