"""Schedules are printed and parsed, and their tasks put in order."""

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superscaler.errors import PlanError
from superscaler.ir.graph import Phase
from superscaler.planner.order import Order
from superscaler.planner.pipeline import Pipeline
from superscaler.planner.schedule import Schedule, Task, order_tasks, parse_schedule
from superscaler.planner.schedules import NAMED, gpipe


@pytest.mark.parametrize("name", NAMED)
def test_printing_and_parsing_agree(name):
    for rows, count in [(2, 1), (2, 5), (4, 6)]:
        schedule = NAMED[name].make(count)(NAMED[name].pipeline(rows))
        assert parse_schedule(str(schedule), schedule.name) == schedule


def test_rows_need_no_heading():
    assert parse_schedule("F0 F1\nF0 F1") == parse_schedule("stage 0: F0 F1\nstage 1: F0 F1")


def test_a_row_of_several_stages_names_them():
    rows = (
        (Task(0, Phase.FORWARD, 0), Task(2, Phase.FORWARD, 0), Task(2, Phase.BACKWARD, 0)),
        (Task(1, Phase.WEIGHT, 0),),
    )
    text = "row 0: 0F0 2F0 2B0\nstage 1: W0"
    assert str(Schedule("two on one", 1, rows)) == text
    assert parse_schedule(text, "two on one") == Schedule("two on one", 1, rows)


TASKS_ANYWHERE = st.builds(Task, st.integers(0, 12), st.sampled_from("FBW").map(Phase), st.integers(0, 12))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.lists(TASKS_ANYWHERE, max_size=6).map(tuple), max_size=4).map(tuple))
def test_any_rows_are_printed_and_parsed(rows):
    micro_batches = 1 + max((task.micro_batch for row in rows for task in row), default=0)
    schedule = Schedule("drawn", micro_batches, rows)
    assert parse_schedule(str(schedule), "drawn") == schedule


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("row 0: 0F0 B0", "'B0', which is no task"),
        ("stage 0: 0F0", "'0F0', which is no task"),
        ("stage 0: F0 G0", "'G0', which is no task"),
        ("F", "'F', which is no task"),
        ("F0 F-1", "'F-1', which is no task"),
        ("F0 U0", "'U0', which is no task"),
        ("stage 1: F0\nstage 0: F0", "headed 'stage 1'"),
    ],
)
def test_what_is_no_grid_is_refused(text, fault):
    with pytest.raises(PlanError, match=fault):
        parse_schedule(text)


TASKS = [Task(0, phase, i) for phase in (Phase.FORWARD, Phase.BACKWARD) for i in range(3)]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.sampled_from(TASKS), st.sampled_from(TASKS)), max_size=4), st.permutations(TASKS)
)
def test_ordered_tasks_obey_or_no_order_of_the_row_does(pairs, row):
    orders = [Order(first, then) for first, then in pairs]
    data = [(Task(0, Phase.FORWARD, i), Task(0, Phase.BACKWARD, i)) for i in range(3)]

    def obeys(candidate):
        position = {task: i for i, task in enumerate(candidate)}
        return all(position[first] < position[then] for first, then in [*pairs, *data])

    schedule = Schedule("drawn", 3, (tuple(row),))
    possible = any(obeys(candidate) for candidate in permutations(TASKS))
    if not possible:
        with pytest.raises(PlanError, match="contradict each other or the data"):
            order_tasks(schedule, orders)
        return
    ordered = order_tasks(schedule, orders).rows[0]
    assert sorted(ordered) == sorted(row)
    assert not pairs or obeys(ordered)
    if not pairs or obeys(row):
        assert ordered == tuple(row), "what obeys already stays as it is"


def test_orders_of_tasks_that_are_not_there_or_share_no_device_are_refused():
    schedule = gpipe(2)(Pipeline.chain(2))
    with pytest.raises(PlanError, match="has no task F2 on stage 0"):
        order_tasks(schedule, [Order(Task(0, Phase.FORWARD, 2), Task(0, Phase.FORWARD, 0))])
    with pytest.raises(PlanError, match="share no device"):
        order_tasks(schedule, [Order(Task(0, Phase.FORWARD, 1), Task(1, Phase.FORWARD, 0))])
