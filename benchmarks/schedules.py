"""Pipeline schedules: named ones against the published formulas, solved ones against named ones and their bound.

Formulas: bubble and peak activations of each named schedule at unit costs (F, B for activations and W take a third
of a micro-batch's work on a row each), as the DualPipe, Zero Bubble and Megatron papers publish them. Bubbles are the
longest waits of a row between its first task and its last, as a fraction of its work; peaks are in activations of
one micro-batch on a row. Uneven: stages of unlike work, messages that take time, limited memory; here the search must
be better than every named schedule that fits. Proofs: 4 stages and 8 micro-batches optimal within 5 s, the solver
alone and from the worst start; 16 stages and 256 micro-batches, from the steady state alone, within 60 s and 2 % of
the lower bound.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from random import Random
from time import perf_counter
from typing import Any

from benchmarks.report import finish, parse_arguments, print_table
from superscaler.errors import PlanError
from superscaler.planner.list_scheduling import one_by_one
from superscaler.planner.pipeline import Costs, Pipeline
from superscaler.planner.schedules import NAMED
from superscaler.planner.solve_schedule import ScheduleSearch, SolvedSchedule, named_schedules, solve_schedule
from superscaler.planner.solver import Effort, improve
from superscaler.planner.task_graph import task_graph
from superscaler.planner.timeline import timeline


@dataclass(frozen=True)
class Formula:
    """What is published of a schedule: from p rows and m micro-batches, in thirds of a stage's work."""

    bubble: Callable[[int, int], float]
    peak: Callable[[int, int], float]
    parts: int = 1
    """Into how many tasks of a phase the work of a row on one micro-batch is divided."""


FORMULAS = {
    "gpipe": Formula(lambda p, m: 3 * (p - 1), lambda p, m: m),
    "1f1b": Formula(lambda p, m: 3 * (p - 1), lambda p, m: p),
    "interleaved": Formula(lambda p, m: 3 * (p - 1) / 2, lambda p, m: p * (1 + (p - 1) / (2 * p)), 2),
    "zb-h1": Formula(lambda p, m: p - 1, lambda p, m: p),
    "zb-h2": Formula(lambda p, m: 0, lambda p, m: 2 * p - 1),
    "zb-v": Formula(lambda p, m: 0, lambda p, m: p, 2),
    # half of the samples go each way, so that one of DualPipe's chunks is half a micro-batch here; its formula has a
    # forward and a backward run as one task: here they are two, and the bubble is but half as long
    "bidirectional": Formula(lambda p, m: (p / 2 - 1) * (3 + 2 - 3) / 2, lambda p, m: (p + 1) / 2, 2),
    "3f1b": Formula(lambda p, m: 3 * (p - 1), lambda p, m: p),
}


def main() -> None:
    """Run the three parts."""
    options = parse_arguments(__doc__ or "")
    shapes = [(4, 8), (4, 16), (8, 16), (8, 64)] if options.quick else list(_shapes())
    found = (_against_formula(name, rows, count) for name in FORMULAS for rows, count in shapes)
    shown = [row for row in found if row is not None]
    print_table(shown)
    formulas = [row for row in shown if row["full"]]
    print()
    uneven = [_against_named(case) for case in (CASES[:3] if options.quick else CASES)]
    print_table(uneven)
    print()
    proofs = [_proof_at_once(), _by_steady_state(even=True), _by_steady_state(even=False)]
    won = sum(row["better"] for row in uneven)
    ok = all(row["ok"] for row in (*formulas, *uneven, *proofs))
    finish(
        "schedules", ok, proofs, options.quick,
        formulas=len(formulas), equal=sum(row["equal"] for row in formulas),
        uneven=len(uneven), better_than_all_named=won,
        optimal=sum(row["gap_%"] == 0 for row in uneven), worst_gap_percent=max(row["gap_%"] for row in uneven),
        proof_seconds=proofs[0]["seconds"], large_seconds=max(row["seconds"] for row in proofs[1:]),
        large_gap_percent=max(row["gap_%"] for row in proofs[1:]),
    )  # fmt: skip


def _shapes() -> Iterator[tuple[int, int]]:
    yield from ((rows, count) for rows in (4, 8, 16) for count in (8, 16, 32, 64))


def _against_formula(name: str, rows: int, count: int) -> dict[str, Any] | None:
    """A schedule beside its formula, which holds once every row is full: from twice as many micro-batches as rows.

    None where the schedule is not for so few.
    """
    formula, entry = FORMULAS[name], NAMED[name]
    maker, pipeline = entry.make(count), entry.pipeline(rows)
    try:
        schedule = maker(pipeline)
    except PlanError:
        return None
    made = timeline(task_graph(pipeline, count, maker.splits_backward), schedule)
    work = max(made.graph.loads) * count
    bubble = Fraction(max(made.bubbles), work)
    published = Fraction(formula.bubble(rows, count)) * formula.parts / work
    peak, published_peak = max(made.peaks) / formula.parts, formula.peak(rows, count)
    return {
        "schedule": name, "rows": rows, "micro-batches": count,
        "bubble": float(bubble), "published": float(published), "peak": peak, "published peak": published_peak,
        "makespan/work": made.makespan / work, "full": count >= 2 * rows,
        "equal": bubble == published and peak == published_peak, "ok": bubble <= published and peak <= published_peak,
    }  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A pipeline of unlike stages."""

    what: str
    pipeline: Pipeline
    micro_batches: int
    seconds: float = 20.0


def _chain(what: str, rows: int, count: int, memory: int, seed: int, latency: float = 0.0) -> Case:
    return Case(what, _priced(Pipeline.chain(rows), memory, seed, latency), count)


def _priced(pipeline: Pipeline, memory: int, seed: int, latency: float = 0.0) -> Pipeline:
    """F, B and W of each stage drawn at random: from 0.5 to 1.5, B from F to 1.5 F, W from 0.5 F to F."""
    draw = Random(seed)
    stages = range(pipeline.num_stages)
    forward = tuple(draw.uniform(0.5, 1.5) for _ in stages)
    backward = tuple(one * draw.uniform(1.0, 1.5) for one in forward)
    weight = tuple(one * draw.uniform(0.5, 1.0) for one in forward)
    ones = (1,) * pipeline.num_stages
    messages = dict.fromkeys(pipeline.edges, latency)
    limits = (memory,) * pipeline.num_rows
    return pipeline.with_costs(Costs(forward, backward, weight, ones, ones, messages, limits))


def _large_ends(rows: int) -> Pipeline:
    """A light first stage (an embedding) and a heavy last one (a head over a large vocabulary)."""
    forward = (0.4, *(1.0,) * (rows - 2), 1.8)
    backward, weight, ones = forward, tuple(0.9 * one for one in forward), (1,) * rows
    return Pipeline.chain(rows).with_costs(
        Costs(forward, backward, weight, ones, ones, memory_limit=(rows,) * rows)
    )


def _two_encoders() -> Pipeline:
    """Two encoders that join: two branches of two stages each, one of them longer, and two stages after them."""
    edges = ((0, 1), (1, 4), (2, 3), (3, 4), (4, 5))
    return Pipeline(Pipeline.chain(6).lanes, edges)


CASES = (
    Case("light first, heavy last stage", _large_ends(4), 8),
    _chain("random stages", 4, 16, 4, seed=1),
    _chain("random stages, slow messages", 4, 16, 6, seed=2, latency=0.5),
    Case("light first, heavy last stage", _large_ends(8), 32),
    _chain("random stages", 8, 16, 8, seed=3),
    _chain("random stages, slow messages", 8, 32, 12, seed=4, latency=0.5),
    _chain("random stages", 16, 64, 16, seed=5),
    Case("two encoders that join", _priced(_two_encoders(), 5, seed=6), 16),
    Case("there and back", _priced(NAMED["zb-v"].pipeline(4), 8, seed=7), 16),
    Case("there and back", _priced(NAMED["zb-v"].pipeline(8), 16, seed=8), 32),
    Case("round and round", _priced(NAMED["interleaved"].pipeline(4), 11, seed=9), 16),
    Case("from both ends", _priced(NAMED["bidirectional"].pipeline(4), 5, seed=10), 16),
    Case("three passes", _priced(NAMED["3f1b"].pipeline(4), 4, seed=11), 16),
    Case("stages on all rows", _priced(NAMED["interlaced"].pipeline(4), 12, seed=12), 16),
)


def _against_named(case: Case) -> dict[str, Any]:
    """The search against every named schedule that suits the stages and fits in memory."""
    solved = solve_schedule(case.pipeline, case.micro_batches, case.seconds)
    graph = solved.timeline.graph
    assert graph.limits is not None
    named = {
        name: timeline(graph, schedule)
        for name, schedule in named_schedules(case.pipeline, case.micro_batches, True)
    }
    fitting = {name: made for name, made in named.items() if max(made.peaks) <= graph.limits[0]}
    best = min(fitting, key=lambda name: fitting[name].makespan, default="")
    least = fitting[best].makespan if best else float("inf")
    return {
        "stages": case.what, "rows": len(graph.loads), "micro-batches": case.micro_batches,
        "best named": best or "none fits", "takes": least * graph.tick if best else float("nan"),
        "solved": solved.makespan, "bound": solved.bound, "gap_%": 100 * solved.gap,
        "limit": graph.limits[0], "peak": max(solved.timeline.peaks),
        "peak named": max(fitting[best].peaks) if best else float("nan"),
        "seconds": solved.seconds, "found by": solved.found_by, "better": solved.timeline.makespan < least,
        "ok": solved.timeline.makespan <= least and max(solved.timeline.peaks) <= graph.limits[0],
    }  # fmt: skip


def _unit(rows: int, memory: int) -> Pipeline:
    pipeline = Pipeline.chain(rows)
    return pipeline.with_costs(replace(pipeline.priced, memory_limit=(memory,) * rows))


def _proof_at_once() -> dict[str, Any]:
    """The solver alone, from one micro-batch after the other."""
    search = ScheduleSearch(_unit(4, 4), 8, seconds=60)
    start = perf_counter()
    found, bound = improve(one_by_one(search.graph), search.bounds, Effort(60))
    seconds = perf_counter() - start
    good = (found.makespan, bound) == (27, 27) and seconds < 5
    solved = SolvedSchedule(found, bound, seconds, "the whole solved at once")
    return _proof("4 rows, 8 micro-batches, thirds, memory 4", solved, good)


def _by_steady_state(even: bool) -> dict[str, Any]:
    """A steady state unrolled and squeezed; no named schedule and no priority rule beside it."""
    pipeline = _unit(16, 16) if even else _priced(Pipeline.chain(16), 16, seed=13, latency=0.25)
    search = ScheduleSearch(pipeline, 256, seconds=60)
    search.repeated()
    solved = search.result()
    good = solved.seconds < 60 and solved.gap <= 0.02
    what = "thirds" if even else "random stages, messages"
    return _proof(f"16 rows, 256 micro-batches, {what}, memory 16", solved, good)


def _proof(what: str, solved: SolvedSchedule, good: bool) -> dict[str, Any]:
    return {
        "problem": what, "takes": solved.makespan, "bound": solved.bound, "gap_%": 100 * solved.gap,
        "peak": max(solved.timeline.peaks), "seconds": solved.seconds, "found by": solved.found_by, "ok": good,
    }  # fmt: skip


if __name__ == "__main__":
    main()
