"""Solved schedules against brute force, against named ones, and piece by piece against the whole."""

from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from superscaler.errors import PlanError
from superscaler.planner.list_scheduling import list_schedule, one_by_one, squeeze
from superscaler.planner.lower_bound import Bounds
from superscaler.planner.pipeline import Costs, Pipeline
from superscaler.planner.schedules import NAMED, solved
from superscaler.planner.solve_schedule import ScheduleSearch, named_schedules, solve_schedule
from superscaler.planner.solver import Effort, improve, least_memory, shortest_period
from superscaler.planner.task_graph import task_graph
from superscaler.planner.timeline import Timeline, peak_memory, timeline
from tests.planner.random_pipelines import pipelines

SMALL = settings(max_examples=60, deadline=None, derandomize=True)


def brute_force(graph):
    """The least makespan of all orders that fit in memory, and the least memory beyond the limits of any order.

    Runs are put one after the other, each as early as its rows and data allow.
    """
    size, count = graph.size, graph.num_runs
    best = [None, None]

    def place(starts, rows, held, beyond):
        if len(starts) == count:
            makespan = max(start + graph.run(number).duration for number, start in starts.items())
            best[1] = beyond if best[1] is None else min(best[1], beyond)
            if not beyond:
                best[0] = makespan if best[0] is None else min(best[0], makespan)
            return
        for number in range(count):
            run = graph.run(number)
            needs = [(number - number % size + other, wait) for other, wait in run.before]
            if number in starts or any(other not in starts for other, _ in needs):
                continue
            start = max(
                [rows[row] for row in run.rows]
                + [starts[other] + graph.run(other).duration + wait for other, wait in needs]
            )
            now, over = list(held), beyond
            for row in run.rows:
                now[row] += graph.takes[number % size]
                if graph.limits is not None:
                    over = max(over, now[row] - graph.limits[row])
                now[row] -= graph.frees[number % size]
            if over and best[1] is not None and over >= best[1] and best[0] is not None:
                continue
            later = [start + run.duration if row in run.rows else end for row, end in enumerate(rows)]
            place({**starts, number: start}, later, now, over)

    idle = [0] * graph.pipeline.num_rows
    place({}, idle, idle, 0)
    return best


@SMALL
@given(pipelines(), st.integers(1, 2), st.booleans())
def test_the_solver_finds_what_brute_force_finds(pipeline, micro_batches, splits_backward):
    graph = task_graph(pipeline, micro_batches, splits_backward)
    assume(2 <= graph.num_runs <= 7)
    makespan, beyond = brute_force(graph)
    if makespan is None:
        with pytest.raises(PlanError, match="no order of the tasks fits") as refused:
            solve_schedule(pipeline, micro_batches, 20, splits_backward=splits_backward)
        limits = pipeline.costs.memory_limit
        wanted = f"works is {limits[0] + beyond} on" if len(set(limits)) == 1 else f"every row by {beyond}"
        assert wanted in str(refused.value)
        return
    best = solve_schedule(pipeline, micro_batches, 20, splits_backward=splits_backward)
    assert (best.makespan, best.is_optimal) == (makespan, True)
    assert timeline(graph, best.schedule).makespan == makespan, "the order alone gives the times"


@SMALL
@given(pipelines(max_stages=4), st.integers(1, 4), st.booleans())
def test_list_scheduling_and_squeezing_keep_to_memory_rows_and_data(pipeline, micro_batches, splits_backward):
    graph = task_graph(pipeline, micro_batches, splits_backward)
    safe = one_by_one(graph)
    limits = graph.limits
    assume(limits is None or all(peak <= limit for peak, limit in zip(safe.peaks, limits, strict=True)))
    bounds = Bounds(graph)
    listed = list_schedule(graph, safe, lambda number: (-bounds.tails[number], number))
    squeezed = squeeze(listed)
    assert bounds.makespan <= squeezed.makespan <= listed.makespan
    for made in (safe, listed, squeezed):
        check(made)


def check(made: Timeline):
    graph = made.graph
    for number, start in enumerate(made.starts):
        for other, wait in graph.run(number).before:
            assert made.ends[number - number % graph.size + other] + wait <= start
    for row, numbers in enumerate(made.rows):
        for first, then in pairwise(numbers):
            assert made.ends[first] <= made.starts[then]
        assert graph.limits is None or peak_memory(graph, numbers) <= graph.limits[row]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(NAMED)), st.integers(1, 2), st.integers(1, 5), st.data())
def test_solved_is_never_worse_than_a_named_schedule(name, half, micro_batches, data):
    pipeline = NAMED[name].pipeline(2 * half)
    stages = pipeline.num_stages

    def numbers():
        return tuple(data.draw(st.integers(1, 5)) for _ in range(stages))

    ones = (1,) * stages
    limit = (data.draw(st.integers(stages, 4 * stages)),) * pipeline.num_rows
    priced = pipeline.with_costs(Costs(numbers(), numbers(), numbers(), ones, ones, {}, limit))
    best = solve_schedule(priced, micro_batches, seconds=1)
    graph = best.timeline.graph
    check(best.timeline)
    assert best.bound <= best.makespan
    named = [timeline(graph, schedule) for _, schedule in named_schedules(priced, micro_batches, True)]
    fitting = [made.makespan for made in named if max(made.peaks) <= limit[0]]
    assert best.timeline.makespan <= min(fitting, default=best.timeline.makespan)


def test_four_stages_and_eight_micro_batches_in_thirds_are_proved_optimal():
    """27: 24 of work and ZB-H1's bubble of 3; ../reference and arXiv 2401.10241."""
    pipeline = limited(Pipeline.chain(4), 4)
    best = solve_schedule(pipeline, 8)
    assert (best.makespan, best.bound, best.is_optimal) == (27, 27, True)
    graph = best.timeline.graph
    bounds = Bounds(graph)
    alone, bound = improve(one_by_one(graph), bounds, Effort(60))
    assert (alone.makespan, bound) == (27, 27), "from the worst start, too"


def limited(pipeline, limit):
    ones = (1,) * pipeline.num_stages
    return pipeline.with_costs(Costs(ones, ones, ones, ones, ones, {}, (limit,) * pipeline.num_rows))


def uneven(rows, memory, seed):
    figures = [1 + (seed * 7 + 5 * k * k + 3 * k) % 6 for k in range(3 * rows)]
    ones = (1,) * rows
    costs = Costs(
        tuple(figures[:rows]), tuple(figures[rows : 2 * rows]), tuple(figures[2 * rows :]), ones, ones, {},
        (memory,) * rows,
    )  # fmt: skip
    return Pipeline.chain(rows).with_costs(costs)


@pytest.mark.parametrize(("rows", "count"), [(2, 6), (3, 6), (4, 6), (4, 9)])
@pytest.mark.parametrize("seed", range(4))
def test_a_steady_state_with_start_and_end_is_as_good_as_the_whole(rows, count, seed):
    search = ScheduleSearch(uneven(rows, rows + seed % 2, seed), count, seconds=60)
    whole, bound = improve(one_by_one(search.graph), search.bounds, Effort(60))
    assert whole.makespan == bound
    search.repeated()
    search.windows()
    assert search.best.makespan == whole.makespan


@SMALL
@given(pipelines(max_stages=4), st.integers(1, 5))
def test_a_steady_state_obeys_everything_when_unrolled(pipeline, micro_batches):
    graph = task_graph(pipeline, micro_batches, True)
    assume(graph.limits is None or least_memory(graph, Effort(10))[1] == 0)
    bounds = Bounds(graph)
    period = shortest_period(graph, bounds, [0] * graph.size, Effort(30))
    assert period is not None
    assert period.length >= period.bound >= max(graph.loads)
    check(period.unrolled(graph))


def test_the_same_seed_finds_the_same_schedule():
    pipeline = NAMED["3f1b"].pipeline(2)
    stages = pipeline.num_stages
    costs = Costs(tuple(range(1, stages + 1)), (3,) * stages, (2,) * stages, (1,) * stages, (1,) * stages)
    first, second = (solve_schedule(pipeline.with_costs(costs), 6, 20, seed=3) for _ in range(2))
    assert first.schedule == second.schedule


def test_a_limit_nothing_fits_in_is_refused_with_the_least_that_works():
    with pytest.raises(PlanError, match="smallest limit that works is 2 on every row"):
        solve_schedule(limited(NAMED["zb-v"].pipeline(2), 1), 4)


def test_a_plan_script_solves_its_schedule_and_shows_the_proof():
    schedule = solved(8, memory=4)(Pipeline.chain(4))
    assert schedule.name == "solved: optimal"
    graph = task_graph(Pipeline.chain(4), 8, schedule.splits_backward)
    made = timeline(graph, schedule)
    assert (made.makespan, max(made.peaks)) == (27, 4)
    whole = solved(8, memory=4, splits_backward=False)(Pipeline.chain(4))
    assert timeline(task_graph(Pipeline.chain(4), 8, False), whole).makespan == 33, "as 1F1B"
