"""Replay: discrete events over the computing and the communicating streams of every row's devices.

The devices of a row run one program alike, so each row is replayed once, however many devices it has. A message
leaves when its sender reaches it, one after another on the sender's link, and a receiver waits for it. A collective
that a program waits for begins when all rows that take part are there, and after those over the same mesh axis that
were started before it; those over others have communicators of their own, and do not hold it up. Copies from host
memory have a stream of their own.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from superscaler.codegen.program import Part
from superscaler.ir.graph import Phase
from superscaler.planner.schedule import Task
from superscaler.simulator.actions import (
    Action,
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


class Stream(StrEnum):
    """What a device does side by side."""

    COMPUTE = "compute"
    COMMUNICATION = "communication"
    """What the program waits for at once."""
    BESIDE = "beside"
    """Communication that was started, and goes on while the program computes."""
    LINK = "messages"
    FETCHES = "fetches"
    """Copies from host memory that go on while the program computes."""


@dataclass(frozen=True, slots=True)
class Span:
    """Something that occupies a stream of a row's devices, in seconds from the start of the step."""

    row: int
    stream: Stream
    task: Task
    name: str
    """Empty for computing."""
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class RowActions:
    """What one row does in a step."""

    tasks: tuple[Task, ...]
    """In order, with P first and U last."""
    actions: Mapping[Part, Sequence[Action]]
    last: Mapping[Part, Sequence[Action]] = field(default_factory=dict)
    """Of the last task of a stage and phase, where it is another."""


@dataclass
class _Row:
    clock: float = 0.0
    """Of the computing stream."""
    beside_until: float = 0.0
    """When what was started ends."""
    axes_until: dict[str, float] = field(default_factory=dict)
    """The same, per mesh axis it is over."""
    sends_until: float = 0.0
    started: deque[float] = field(default_factory=deque)
    """When messages under way end, oldest first."""
    accumulated_until: float = 0.0
    """When the sums of what micro-batches have added up end."""
    gathered: dict[int, float] = field(default_factory=dict)
    """When groups of gathers are there."""
    host_until: float = 0.0
    """When what is copied from host memory is there."""
    fetched: dict[int, float] = field(default_factory=dict)
    """When groups of it are there."""
    spans: list[Span] = field(default_factory=list)


def replay(rows: Sequence[RowActions]) -> tuple[tuple[Span, ...], ...]:
    """When everything happens; the spans of each row, in the order in which they begin.

    The rows come to their end: plans whose rows wait for each other are refused when they are made.
    """
    return _Replay(rows).run()


_Channel = tuple[str, int, int]
"""Name, sending row and receiving row."""


class _Replay:
    def __init__(self, given: Sequence[RowActions]) -> None:
        self.given = given
        self.rows = [_Row() for _ in given]
        self.channels: dict[_Channel, deque[float]] = {}
        """When what was sent arrives."""

    def run(self) -> tuple[tuple[Span, ...], ...]:
        """Let every row go on until it lacks a message, until all are done."""
        running = {number: self._row(number) for number in range(len(self.rows))}
        waiting: dict[_Channel, int] = {}
        ready = deque(running)
        while ready:
            number = ready.popleft()
            lacking = next(running[number], None)
            if lacking is None:
                del running[number]
            else:
                waiting[lacking] = number
            for channel in [channel for channel in waiting if self.channels.get(channel)]:
                ready.append(waiting.pop(channel))
        assert not running, f"rows {sorted(running)} wait for ever"
        return tuple(tuple(sorted(row.spans, key=lambda span: span.start)) for row in self.rows)

    def _row(self, number: int) -> Iterator[_Channel]:
        """Run a row; yields a channel whenever it lacks a message of it."""
        row, given = self.rows[number], self.given[number]
        last = {Part(task.phase, task.stage): place for place, task in enumerate(given.tasks)}
        for place, task in enumerate(given.tasks):
            row.gathered.clear()
            row.fetched.clear()
            part = Part(task.phase, task.stage)
            is_last = part in given.last and last[part] == place
            for action in (given.last if is_last else given.actions).get(part, ()):
                match action:
                    case Work(seconds):
                        self._compute(number, task, seconds)
                    case Give(channel, others, seconds):
                        self._give(number, task, channel, others, seconds)
                    case Take(channel, others):
                        for other in others:
                            row.clock = max(row.clock, (yield from self._arrival(channel, other, number)))
                    case Meet(name, seconds, others, axis):
                        for other in others:
                            self.channels.setdefault((name, number, other), deque()).append(row.clock)
                        for other in others:
                            row.clock = max(row.clock, (yield from self._arrival(name, other, number)))
                        row.clock = self._communicate(number, task, name, seconds, axis)
                    case Start(name, seconds, axis, is_accumulated):
                        end = self._begin(number, task, name, seconds, axis)
                        if is_accumulated:
                            row.accumulated_until = end
                        else:
                            row.started.append(end)
                    case Wait(leaving):
                        while len(row.started) > leaving:
                            row.clock = max(row.clock, row.started.popleft())
                    case WaitAccumulated():
                        row.clock = max(row.clock, row.accumulated_until)
                    case TakeGroup(group, next_seconds, axis):
                        row.clock = max(row.clock, row.gathered.pop(group, 0.0))
                        row.gathered[group + 1] = self._begin(
                            number, task, "gather ahead", next_seconds, axis
                        )
                    case TakeFetched(group, next_seconds):
                        self._fetch(number, task, group, next_seconds)

    def _fetch(self, number: int, task: Task, group: int, next_seconds: float) -> None:
        """Wait for a group from host memory, while the next sets out behind it."""
        row = self.rows[number]
        start = max(row.clock, row.host_until)
        row.clock = max(row.clock, row.fetched.pop(group, 0.0))
        row.host_until = row.fetched[group + 1] = start + next_seconds
        if next_seconds:
            row.spans.append(Span(number, Stream.FETCHES, task, "fetch ahead", start, row.host_until))

    def _arrival(self, channel: str, sender: int, receiver: int) -> Iterator[_Channel]:
        key = channel, sender, receiver
        if not self.channels.get(key):
            yield key
        return self.channels[key].popleft()

    def _compute(self, number: int, task: Task, seconds: float) -> None:
        row = self.rows[number]
        last = row.spans[-1] if row.spans else None
        start, row.clock = row.clock, row.clock + seconds
        if last and (last.stream, last.task, last.end) == (Stream.COMPUTE, task, start):
            row.spans.pop()
            start = last.start
        row.spans.append(Span(number, Stream.COMPUTE, task, "", start, row.clock))

    def _communicate(self, number: int, task: Task, name: str, seconds: float, axis: str) -> float:
        """Communicate now, or when the axis is free; returns when it ends."""
        row = self.rows[number]
        start = max(row.clock, row.axes_until.get(axis, 0.0))
        if seconds:
            row.spans.append(Span(number, Stream.COMMUNICATION, task, name, start, start + seconds))
        return start + seconds

    def _begin(self, number: int, task: Task, name: str, seconds: float, axis: str) -> float:
        """Start what goes on beside computing, behind what was started before; returns when it ends."""
        row = self.rows[number]
        start = max(row.clock, row.beside_until)
        row.beside_until = row.axes_until[axis] = start + seconds
        if seconds:
            row.spans.append(Span(number, Stream.BESIDE, task, name, start, start + seconds))
        return start + seconds

    def _give(self, number: int, task: Task, channel: str, others: Sequence[int], seconds: float) -> None:
        row = self.rows[number]
        start = max(row.clock, row.sends_until)
        arrives = start + seconds if set(others) != {number} else row.clock
        row.sends_until = max(row.sends_until, arrives)
        if arrives > start:
            row.spans.append(Span(number, Stream.LINK, task, channel, start, arrives))
        for other in others:
            self.channels.setdefault((channel, number, other), deque()).append(arrives)


def whole_step(tasks: Sequence[Task]) -> tuple[Task, ...]:
    """The tasks of a row with what runs before the first and after the last."""
    return (Task(-1, Phase.PREPARE, 0), *tasks, Task(-1, Phase.UPDATE, 0))
