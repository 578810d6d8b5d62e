"""Progress: rows run their tasks side by side and meet in messages: whether all come to their end.

A send does not wait, a receive does, and messages of one channel between two rows keep their order. What stops rows
is shown on the grid of their schedule, with an arrow.
"""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from superscaler.ir.graph import Phase
from superscaler.planner.schedule import Task


class Part(NamedTuple):
    """Names one body: what a phase does in one stage; P and U are one body for all stages of the row."""

    phase: Phase
    stage: int = -1

    def __str__(self) -> str:
        """Print as ``F of stage 2`` or ``U``."""
        return f"{self.phase} of stage {self.stage}" if self.phase.is_repeated else str(self.phase)


@dataclass(frozen=True, slots=True)
class Message:
    """One point of a body where a row sends to others or waits for them.

    A collective with other rows is a send to all of them and a receive from all.
    """

    kind: str
    """``send`` or ``receive``."""
    rows: tuple[int, ...]
    """The other rows; the row itself where it hands over from one of its stages to another."""
    name: str
    """The value, or the exchange's name."""
    channel: str
    """Messages of one channel between two rows keep their order."""


@dataclass(frozen=True, slots=True)
class RowTasks:
    """What one row runs, as far as other rows notice."""

    title: str
    stages: tuple[int, ...]
    parts: frozenset[Part]
    """The bodies there are."""
    tasks: tuple[Task, ...]
    messages: Mapping[Part, Sequence[Message]]


@dataclass(frozen=True, slots=True)
class Stop:
    """Why rows do not come to their end."""

    what: str
    """With the grid."""
    remedy: str


_BEFORE = {Phase.BACKWARD: Phase.FORWARD, Phase.WEIGHT: Phase.BACKWARD}
"""What must have run of a micro-batch before a phase of the same stage."""


def row_title(row: int, stages: Sequence[int]) -> str:
    """What messages call a row: ``stage 1``, or ``row 0 (stages 0, 2)``."""
    several = ", ".join(map(str, stages))
    return f"stage {several}" if len(stages) == 1 else f"row {row} (stages {several})"


def find_stop(rows: Sequence[RowTasks], micro_batches: int) -> Stop | None:
    """What keeps rows from running every body once per micro-batch, F before B before W; None where nothing does."""
    for number, row in enumerate(rows):
        fault = _tasks_fault(row, micro_batches)
        if fault:
            return Stop(
                f"the schedule of {row.title} {fault}:\n{_listing(rows, {number: fault})}",
                "give every stage each F and B of each micro-batch once, B after F",
            )
    return _Simulation(rows).run()


def _tasks_fault(row: RowTasks, micro_batches: int) -> str:
    expected = {
        Task(part.stage, part.phase, i)
        for part in row.parts
        for i in range(micro_batches)
        if part.phase.is_repeated
    }
    counts = Counter(row.tasks)
    missing, extra = expected - counts.keys(), counts.keys() - expected
    twice = {task for task, count in counts.items() if count > 1}
    place = {task: i for i, task in enumerate(row.tasks)}
    early = [task for task in row.tasks if _comes_early(task, place)]
    return (
        f"leaves out {_names(missing)}" if missing
        else f"runs {_names(extra)}, which is no task of its {micro_batches} micro-batches" if extra
        else f"runs {_names(twice)} twice" if twice
        else f"runs {_names(early)} before its {_BEFORE[early[0].phase].name.lower()}" if early
        else ""
    )  # fmt: skip


def _comes_early(task: Task, place: Mapping[Task, int]) -> bool:
    phase = task.phase
    while phase in _BEFORE:
        phase = _BEFORE[phase]
        if place.get(Task(task.stage, phase, task.micro_batch), -1) > place[task]:
            return True
    return False


_Sent = tuple[Task, str, int]
"""The task and value of a message, and when it leaves."""


@dataclass
class _Row:
    tasks: list[Task]
    task: int = 0
    message: int = 0
    time: int = 0
    shown: list[tuple[int, Task]] = field(default_factory=list)


@dataclass
class _Simulation:
    given: Sequence[RowTasks]
    channels: dict[tuple[str, int, int], deque[_Sent]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        first, last = Task(-1, Phase.PREPARE, 0), Task(-1, Phase.UPDATE, 0)
        self.rows = [_Row([first, *row.tasks, last]) for row in self.given]
        self.stop: Stop | None = None

    def run(self) -> Stop | None:
        """Let every row go on as far as it can until all are done."""
        moved = True
        while moved:
            moved = False
            for number in range(len(self.rows)):
                while self.stop is None and self._advance(number):
                    moved = True
        waiting = {i: row for i, row in enumerate(self.rows) if row.task < len(row.tasks)}
        if waiting and self.stop is None:
            self.stop = self._deadlock(waiting)
        return self.stop

    def _advance(self, number: int) -> bool:
        """Pass one message, or finish the task."""
        row = self.rows[number]
        if row.task == len(row.tasks):
            return False
        task = row.tasks[row.task]
        body = self.given[number].messages.get(Part(task.phase, task.stage), ())
        if row.message == len(body):
            row.shown.append((row.time, task))
            row.time += task.phase.is_repeated
            row.task, row.message = row.task + 1, 0
            return True
        message = body[row.message]
        if message.kind == "send":
            for other in message.rows:
                queue = self.channels.setdefault((message.channel, number, other), deque())
                queue.append((task, message.name, row.time + 1))
        else:
            queues = [self.channels.get((message.channel, other, number)) for other in message.rows]
            if not all(queues):
                return False
            for other, queue in zip(message.rows, queues, strict=True):
                assert queue is not None
                self._take(number, message, other, queue.popleft(), task)
        row.message += 1
        return True

    def _take(self, number: int, message: Message, sender: int, found: _Sent, task: Task) -> None:
        sent_in, name, time = found
        row = self.rows[number]
        # messages of one channel are of one pair of stages, so that phase and micro-batch tell tasks apart
        if (sent_in.phase, sent_in.micro_batch) != (task.phase, task.micro_batch):
            other = f"{name!r} of {_task_name(sent_in)}"
            fault = f"receives {message.name!r} in {_task_name(task)}, but the next message is {other}"
            self.stop = Stop(
                f"{self.given[number].title} {fault} of {self.given[sender].title}:\n"
                + self._grid({number: fault}),
                "let both rows run their tasks in orders that send and receive in one sequence",
            )
        row.time = max(row.time, time)

    def _deadlock(self, waiting: Mapping[int, _Row]) -> Stop:
        faults = {}
        for number, row in waiting.items():
            task = row.tasks[row.task]
            message = self.given[number].messages[Part(task.phase, task.stage)][row.message]
            others = " and ".join(self.given[other].title for other in message.rows)
            faults[number] = f"{_task_name(task)} waits to receive {message.name!r} from {others}"
        return Stop(
            "deadlock: the stages wait for each other:\n" + self._grid(faults),
            "move the tasks marked, or the tasks they wait for, so that senders come first",
        )

    def _grid(self, faults: Mapping[int, str]) -> str:
        width = max((time for row in self.rows for time, _ in row.shown), default=0) + 1
        lines = []
        for number, row in enumerate(self.rows):
            names = _shown_names(self.given[number])
            cells = dict.fromkeys(range(width), ".")
            cells.update({time: names[task] for time, task in row.shown if task.phase.is_repeated})
            line = " ".join(f"{cell:>3}" for cell in cells.values())
            lines.append(
                f"  {self.given[number].title}: {line}"
                + (f"  <-- {faults[number]}" if number in faults else "")
            )
        return "\n".join(lines)


def _listing(rows: Sequence[RowTasks], faults: Mapping[int, str]) -> str:
    return "\n".join(
        f"  {row.title}: {' '.join(_shown_names(row).values())}"
        + (f"  <-- {faults[number]}" if number in faults else "")
        for number, row in enumerate(rows)
    )


def _shown_names(row: RowTasks) -> dict[Task, str]:
    """Tasks as grids show them: with the stage where a row has several."""
    several = len(row.stages) > 1
    return {task: f"{task.stage}{task}" if several else str(task) for task in row.tasks}


def _task_name(task: Task) -> str:
    return str(task) if task.phase.is_repeated else str(task.phase)


def _names(tasks: Sequence[Task] | set[Task]) -> str:
    return ", ".join(map(str, sorted(tasks)))
