"""Times of a schedule's tasks: by hand, and what cannot run is refused."""

import pytest

from superscaler.errors import PlanError
from superscaler.planner.pipeline import Costs, Pipeline
from superscaler.planner.schedule import parse_schedule
from superscaler.planner.task_graph import task_graph
from superscaler.planner.timeline import timeline


def test_durations_latency_and_memory_by_hand():
    costs = Costs((2, 1), (1, 3), (1, 1), (5, 7), (2, 7), {(0, 1): 10})
    graph = task_graph(Pipeline.chain(2).with_costs(costs), 1, splits_backward=True)
    made = timeline(graph, parse_schedule("F0 B0 W0\nF0 B0 W0"))
    # F0 0-2, 10 in between, F1 12-13, B1 13-16, W1 16-17; B0 26-27, W0 27-28
    assert sorted(made.starts) == [0, 12, 13, 16, 26, 27]
    assert (made.makespan, made.spans, made.bubbles, made.idle) == (28, (28, 5), (24, 0), (24, 23))
    assert made.peaks == (5, 7)


def test_memory_is_free_part_by_part():
    costs = Costs((1,), (1,), (1,), (5,), (2,))
    graph = task_graph(Pipeline.chain(1).with_costs(costs), 2, splits_backward=True)
    assert timeline(graph, parse_schedule("F0 B0 F1 B1 W0 W1")).peaks == (7,)
    assert timeline(graph, parse_schedule("F0 B0 W0 F1 B1 W1")).peaks == (5,)
    hungry = Costs((1,), (1,), (1,), (5,), (8,))  # what B leaves for W is more than what F left for B
    graph = task_graph(Pipeline.chain(1).with_costs(hungry), 2, splits_backward=True)
    assert timeline(graph, parse_schedule("F0 F1 B0 B1 W0 W1")).peaks == (16,)


def test_whole_backwards_and_fractions():
    costs = Costs((0.5,), (1.0,), (0.25,), (1,), (1,))
    graph = task_graph(Pipeline.chain(1).with_costs(costs), 2, splits_backward=False)
    made = timeline(graph, parse_schedule("F0 F1 B0 B1"))
    assert made.makespan * graph.tick == pytest.approx(3.5)


def test_a_task_on_several_rows_waits_for_all_of_them():
    pipeline = Pipeline((((0,),), ((0, 1),), ((1,),)), (), training=False)
    graph = task_graph(pipeline, 1, splits_backward=False)
    made = timeline(graph, parse_schedule("row 0: 0F0 1F0\nrow 1: 2F0 1F0"))
    assert sorted(made.starts) == [0, 0, 1]


def test_lanes_depend_on_lanes_of_their_number():
    pipeline = Pipeline((((0,), (1,)), ((1,), (0,))), ((0, 1),), training=False)
    graph = task_graph(pipeline, 1, splits_backward=False)
    made = timeline(graph, parse_schedule("row 0: 0F0 1F0\nrow 1: 0F0 1F0"))
    assert sorted(made.starts) == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ("F0 B0", "1 rows for 2"),
        ("F0 B0\nF0", "leaves out B0 of stage 1 on row 1"),
        ("F0 B0\nF0 B0 B0", "runs a task twice"),
        ("F0 B0 F1\nF0 B0", "runs F1 of stage 0 on row 0, which is no task"),
        ("B0 F0\nF0 B0", "deadlock"),
    ],
)
def test_what_cannot_run_is_refused(rows, fault):
    graph = task_graph(Pipeline.chain(2), 1, splits_backward=False)
    with pytest.raises(PlanError, match=fault):
        timeline(graph, parse_schedule(rows))
