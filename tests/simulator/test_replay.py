"""Replayed steps against closed forms, published bubbles, and the planner's own timelines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superscaler.codegen.program import Part
from superscaler.ir.graph import Phase
from superscaler.planner.pipeline import Costs, Pipeline
from superscaler.planner.schedule import Task
from superscaler.planner.schedules import gpipe, one_f_one_b, zb_h1
from superscaler.planner.task_graph import task_graph
from superscaler.planner.timeline import timeline
from superscaler.simulator.actions import (
    Give,
    Meet,
    Start,
    Take,
    TakeFetched,
    TakeGroup,
    Wait,
    WaitAccumulated,
    Work,
)
from superscaler.simulator.replay import RowActions, Stream, replay, whole_step

FORWARD, BACKWARD, WEIGHT = Part(Phase.FORWARD, 0), Part(Phase.BACKWARD, 0), Part(Phase.WEIGHT, 0)
ONE = (Task(0, Phase.FORWARD, 0),)


def end_of(rows):
    return max(span.end for row in replay(rows) for span in row)


def one_task(*actions):
    return RowActions(whole_step(ONE), {FORWARD: actions})


def chain(schedule, forward, backward, weight, latency):
    """The rows of a pipeline whose stages pass messages on in both directions."""
    rows, last = [], len(schedule.rows) - 1
    for row, tasks in enumerate(schedule.rows):
        before = [Take("there", (row - 1,))] if row else []
        after = [Give("there", (row + 1,), latency)] if row < last else []
        behind = [Take("back", (row + 1,))] if row < last else []
        back = [Give("back", (row - 1,), latency)] if row else []
        actions = {
            Part(Phase.FORWARD, row): [*before, Work(forward[row]), *after],
            Part(Phase.BACKWARD, row): [*behind, Work(backward[row]), *back],
            Part(Phase.WEIGHT, row): [Work(weight[row])],
        }
        rows.append(RowActions(whole_step(tasks), actions))
    return rows


@pytest.mark.parametrize("stages", [1, 2, 4, 8])
@pytest.mark.parametrize("count", [8, 20])
def test_bubbles_of_pipelines_are_the_published_ones(stages, count):
    for make in (gpipe, one_f_one_b):
        schedule = make(count)(Pipeline.chain(stages))
        rows = chain(schedule, [1.0] * stages, [2.0] * stages, [0.0] * stages, 0.0)
        assert end_of(rows) == 3 * count + 3 * (stages - 1)
    schedule = zb_h1(count)(Pipeline.chain(stages))
    rows = chain(schedule, [1.0] * stages, [1.0] * stages, [1.0] * stages, 0.0)
    assert end_of(rows) == 3 * count + (stages - 1)


@given(data=st.data(), stages=st.integers(1, 5), count=st.integers(1, 6))
def test_a_pipeline_takes_as_long_as_the_planners_timeline_says(data, stages, count):
    ticks = st.lists(st.integers(1, 9), min_size=stages, max_size=stages)
    forward, backward = data.draw(ticks), data.draw(ticks)
    make = data.draw(st.sampled_from([gpipe, one_f_one_b]))
    pipeline = Pipeline.chain(stages)
    schedule = make(count)(pipeline)
    seconds = tuple(map(float, forward)), tuple(map(float, backward)), (0.0,) * stages
    graph = task_graph(pipeline.with_costs(Costs(*seconds, (1,) * stages, (0,) * stages)), count, False)
    ticks_per_second = sum(graph.run(i).duration for i in range(graph.size)) / sum(forward + backward)
    expected = timeline(graph, schedule).makespan / ticks_per_second
    assert end_of(chain(schedule, forward, backward, [0] * stages, 0.0)) == pytest.approx(expected, rel=1e-3)


def test_what_is_started_goes_on_beside_computing_one_after_another():
    rows = [one_task(Work(1), Start("a", 3), Work(1), Start("b", 2), Work(1), Wait(1), Work(2), Wait(0))]
    spans = {
        span.name: (span.start, span.end) for span in replay(rows)[0] if span.stream is not Stream.COMPUTE
    }
    assert spans == {"a": (1, 4), "b": (4, 6)}
    assert end_of(rows) == 6  # computing ends then, too: at 3, waits until 4, and goes on for 2


def test_what_micro_batches_add_up_is_waited_for_by_the_update_alone():
    start = Start("a", 5, is_accumulated=True)
    update = (WaitAccumulated(), Work(1))
    row = RowActions(
        whole_step(ONE), {FORWARD: (start, Work(1), Wait(0), Work(1)), Part(Phase.UPDATE): update}
    )
    (spans,) = replay([row])
    assert [(span.start, span.end) for span in spans if span.stream is Stream.COMPUTE] == [(0, 2), (5, 6)]


def test_a_collective_that_is_waited_for_comes_after_those_under_way():
    assert end_of([one_task(Start("a", 5), Work(1), Meet("b", 2, ()))]) == 7
    assert end_of([one_task(Start("a", 5, axis="dp"), Work(1), Meet("b", 2, (), "dp"))]) == 7


def test_a_collective_that_is_waited_for_does_not_wait_for_those_over_another_axis():
    (spans,) = replay([one_task(Start("a", 5, axis="dp"), Work(1), Meet("b", 2, (), "tp"), Work(1))])
    assert max(span.end for span in spans if span.stream is Stream.COMPUTE) == 1 + 2 + 1


def test_groups_are_gathered_while_the_one_before_is_used():
    # gathers take 2 each; the first is waited for, the second travels while the first is used
    row = one_task(TakeGroup(-1, 2), TakeGroup(0, 2), Work(5), TakeGroup(1, 0), Work(1))
    assert end_of([row]) == 2 + 5 + 1
    row = one_task(TakeGroup(-1, 2), TakeGroup(0, 9), Work(5), TakeGroup(1, 0), Work(1))
    assert end_of([row]) == 2 + 9 + 1


def test_groups_come_from_host_memory_while_the_one_before_is_used():
    row = one_task(TakeFetched(-1, 2), TakeFetched(0, 2), Work(5), TakeFetched(1, 0), Work(1))
    assert end_of([row]) == 2 + 5 + 1
    row = one_task(TakeFetched(-1, 2), TakeFetched(0, 9), Work(5), TakeFetched(1, 0), Work(1))
    assert end_of([row]) == 2 + 9 + 1


def test_what_comes_from_host_memory_holds_up_no_collective():
    (spans,) = replay([one_task(TakeFetched(-1, 9), Meet("sum", 2, ()), Work(1), TakeFetched(0, 0), Work(1))])
    assert [span.end for span in spans if span.stream is Stream.COMMUNICATION] == [2]
    assert max(span.end for span in spans) == 9 + 1


def test_messages_leave_one_after_another_and_the_sender_goes_on():
    giver = one_task(Give("a", (1,), 4), Give("b", (1,), 4), Work(1))
    taker = one_task(Take("a", (0,)), Work(1), Take("b", (0,)), Work(1))
    first, second = replay([giver, taker])
    assert max(span.end for span in first if span.stream is Stream.COMPUTE) == 1
    assert max(span.end for span in second) == 4 + 4 + 1


def test_a_collective_among_rows_begins_when_the_last_is_there():
    rows = [one_task(Work(1), Meet("sum", 2, (1,))), one_task(Work(5), Meet("sum", 2, (0,)), Work(1))]
    first, second = replay(rows)
    assert max(span.end for span in first) == 7
    assert max(span.end for span in second) == 8


def test_what_a_row_hands_to_itself_is_there_at_once():
    assert end_of([one_task(Work(1), Give("a", (0,), 9), Take("a", (0,)), Work(1))]) == 2
