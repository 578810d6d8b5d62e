"""Drawn memory: what a row holds from task to task, with the times at which the simulated tasks run."""

from collections.abc import Sequence
from dataclasses import dataclass

from superscaler.codegen.memory import MemoryUse, TaskMemory
from superscaler.planner.schedule import Task
from superscaler.simulator.replay import Span, Stream


@dataclass(frozen=True, slots=True)
class DrawnMemory:
    """What is held while one or several tasks run, and from then until the next."""

    first: Task
    last: Task
    start: float
    end: float
    """In seconds from the start of the step."""
    most: MemoryUse
    """At the fullest moment of these tasks."""
    after: MemoryUse


def draw_memory(memory: Sequence[TaskMemory], spans: Sequence[Span], most: int) -> tuple[DrawnMemory, ...]:
    """The memory of one row over time; where it has more tasks than `most`, neighbours are joined."""
    times = _task_times(spans)
    drawn: list[DrawnMemory] = []
    now = 0.0
    for held in memory:
        start, end = times.get(held.task, (now, now))
        start = max(start, now)
        now = max(start, end)
        drawn.append(DrawnMemory(held.task, held.task, start, now, held.most, held.after))
    size = -(-len(drawn) // most)
    return tuple(_join(drawn[start : start + size]) for start in range(0, len(drawn), size))


def _task_times(spans: Sequence[Span]) -> dict[Task, tuple[float, float]]:
    """When each task computes, or communicates if it does nothing else; what it started may go on longer."""
    times: dict[Task, tuple[float, float]] = {}
    computes: dict[Task, float] = {}
    for span in spans:
        start, end = times.get(span.task, (span.start, span.end))
        times[span.task] = min(start, span.start), max(end, span.end)
        if span.stream is Stream.COMPUTE:
            computes[span.task] = max(computes.get(span.task, 0.0), span.end)
    return {task: (start, computes.get(task, end)) for task, (start, end) in times.items()}


def _join(drawn: Sequence[DrawnMemory]) -> DrawnMemory:
    first, last = drawn[0], drawn[-1]
    fullest = max(drawn, key=lambda one: one.most.total)
    return DrawnMemory(first.first, last.last, first.start, last.end, fullest.most, last.after)
