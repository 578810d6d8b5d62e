"""Drawn spans: what occupies a stream, joined where there is more of it than a chart can show."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from superscaler.planner.schedule import Task
from superscaler.simulator.replay import Span


@dataclass(frozen=True, slots=True)
class DrawnSpan:
    """One or several neighbouring spans of a stream."""

    first: Task
    last: Task
    name: str
    """Empty for computing, and for several of unlike names."""
    start: float
    end: float
    count: int
    """How many spans it stands for."""
    busy: float
    """Seconds from start to end in which the stream is occupied."""


def draw_spans(spans: Sequence[Span], most: int) -> tuple[DrawnSpan, ...]:
    """The spans of a stream in order of time; of more than `most`, those of a task are joined, or of tasks."""
    drawn = [DrawnSpan(s.task, s.task, s.name, s.start, s.end, 1, s.end - s.start) for s in spans]
    if len(drawn) > most:
        drawn = [_join(list(group)) for _, group in groupby(drawn, lambda span: span.first)]
    size = -(-len(drawn) // most) or 1
    return tuple(_join(drawn[start : start + size]) for start in range(0, len(drawn), size))


def _join(spans: Sequence[DrawnSpan]) -> DrawnSpan:
    first, last = spans[0], spans[-1]
    if len(spans) == 1:
        return first
    name = first.name if all(span.name == first.name for span in spans) else ""
    count, busy = sum(span.count for span in spans), sum(span.busy for span in spans)
    return DrawnSpan(first.first, last.last, name, first.start, last.end, count, busy)


def share(counts: Iterable[int], most: int) -> int:
    """How many spans each stream may have, so that all of them together have no more than `most` if possible.

    >>> share([2, 3, 50, 60], 25)
    10
    """
    waiting, left = sorted(counts, reverse=True), most
    while waiting:
        each = left // len(waiting)
        if waiting[-1] > each:
            return max(1, each)
        left -= waiting.pop()
    return most
