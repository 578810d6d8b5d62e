"""A bound no schedule can beat: critical paths, and the work of each row between the first and last it can do."""

from dataclasses import dataclass
from functools import cached_property
from heapq import heappop, heappush

from superscaler.planner.task_graph import TaskGraph


@dataclass(frozen=True)
class Bounds:
    """What is known of a TaskGraph's schedules before any is made."""

    graph: TaskGraph

    @cached_property
    def heads(self) -> list[int]:
        """Per run the earliest it can start: after what it waits for, the same run of the micro-batch before, and
        the memory it needs.
        """
        return _longest_paths(self.graph)

    @cached_property
    def tails(self) -> list[int]:
        """Per run the least time between its end and the end of all."""
        return _longest_paths(self.graph.reversed)[::-1]

    @cached_property
    def makespan(self) -> int:
        """The bound: some row must work that long, with its first run's head before and its last one's tail after."""
        size, count = self.graph.size, self.graph.micro_batches
        rows = (
            [number + i * size for i in range(count) for number in hosted] for hosted in self.graph.hosted
        )
        return max(self._one_row(row) for row in rows)

    def _one_row(self, row: list[int]) -> int:
        """Jackson's rule: of the runs whose head is over, the one with the longest tail, even if it interrupts."""
        waiting = sorted(row, key=lambda number: -self.heads[number])
        ready: list[tuple[int, int]] = []
        left = {number: self.graph.run(number).duration for number in row}
        time = bound = 0
        while waiting or ready:
            if not ready:
                time = max(time, self.heads[waiting[-1]])
            while waiting and self.heads[waiting[-1]] <= time:
                number = waiting.pop()
                heappush(ready, (-self.tails[number], number))
            tail, number = ready[0]
            until = self.heads[waiting[-1]] if waiting else time + left[number]
            worked = min(left[number], until - time)
            time += worked
            left[number] -= worked
            if not left[number]:
                heappop(ready)
                bound = max(bound, time - tail)
        return bound

    @cached_property
    def period(self) -> int:
        """The least time between a run and the same run of the next micro-batch, in the long run."""
        cycles = [
            -(-path // count) for hold, count in memory_counts(self.graph) if (path := self._path(*hold)) > 0
        ]
        return max([*self.graph.loads, *cycles])

    def _path(self, first: int, last: int) -> int:
        """The least time from the start of a run to the end of another of the same micro-batch."""
        reach: dict[int, int] = {first: self.graph.runs[first].duration}
        for number in range(first + 1, last + 1):
            run = self.graph.runs[number]
            starts = [reach[other] + wait for other, wait in run.before if other in reach]
            if starts:
                reach[number] = max(starts) + run.duration
        return reach.get(last, 0)


def memory_counts(graph: TaskGraph) -> list[tuple[tuple[int, int], int]]:
    """How many micro-batches fit at once: ((the run that takes memory, the one that frees it), count)."""
    if graph.limits is None:
        return []
    counts: dict[tuple[int, int], int] = {}
    for hold in graph.holds:
        pair = (hold.taken_by, hold.freed_by)
        least = min(graph.limits[row] for row in graph.runs[hold.taken_by].rows)
        counts[pair] = min(counts.get(pair, graph.micro_batches), max(1, least // hold.amount))
    return [(pair, count) for pair, count in counts.items() if count < graph.micro_batches]


def _longest_paths(graph: TaskGraph) -> list[int]:
    size = graph.size
    freed_before: dict[int, list[tuple[int, int]]] = {}
    for (first, last), count in memory_counts(graph):
        freed_before.setdefault(first, []).append((last, count))
    heads = [0] * graph.num_runs
    for number in range(graph.num_runs):
        base, kind = number - number % size, number % size
        times = [
            heads[base + other] + graph.runs[other].duration + wait for other, wait in graph.runs[kind].before
        ]
        if base:
            times.append(heads[number - size] + graph.runs[kind].duration)
        times += [
            heads[base - count * size + last] + graph.runs[last].duration
            for last, count in freed_before.get(kind, ())
            if base >= count * size
        ]
        heads[number] = max(times, default=0)
    return heads
