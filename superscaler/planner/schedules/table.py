"""The table of schedules: what a plan string calls each, and which stages it wants on which rows of devices."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from superscaler.planner.pipeline import Lanes, Pipeline, ScheduleMaker
from superscaler.planner.schedules.interlaced import between_wide, interlaced, interlaced_ahead
from superscaler.planner.schedules.one_stage_per_row import gpipe, one_f_one_b, zb_h1, zb_h2
from superscaler.planner.schedules.several_stages_per_row import (
    bidirectional,
    both_ways,
    interleaved,
    there_and_back,
    three_f_one_b,
    zb_v,
)
from superscaler.planner.schedules.solved import solved


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


NAMED: dict[str, NamedSchedule] = {
    "gpipe": NamedSchedule(gpipe),
    "1f1b": NamedSchedule(one_f_one_b),
    "interleaved": NamedSchedule(
        interleaved, _chain_of(lambda rows: tuple(((stage % rows,),) for stage in range(2 * rows)))
    ),
    "zb-h1": NamedSchedule(zb_h1),
    "zb-h2": NamedSchedule(zb_h2),
    "zb-v": NamedSchedule(zb_v, _chain_of(there_and_back)),
    "bidirectional": NamedSchedule(bidirectional, _chain_of(both_ways)),
    "3f1b": NamedSchedule(three_f_one_b, _passes),
    "interlaced": NamedSchedule(interlaced, _chain_of(between_wide)),
    "interlaced-ahead": NamedSchedule(interlaced_ahead, _chain_of(between_wide)),
    "solved": NamedSchedule(solved),
}
"""Schedules by the name a plan string uses."""
