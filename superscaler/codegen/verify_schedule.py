"""Proof that all rows' tasks run to their end: messages meet their receives, nobody waits for ever."""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from superscaler.codegen.program import Part, Program
from superscaler.errors import VerificationError
from superscaler.ir.graph import Phase
from superscaler.planner.schedule import Task


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


Messages = Mapping[Part, Sequence[Message]]

_BEFORE = {Phase.BACKWARD: Phase.FORWARD, Phase.WEIGHT: Phase.BACKWARD}
"""What must have run of a micro-batch before a phase of the same stage."""


def verify_tasks(programs: Sequence[Program]) -> None:
    """Every row runs every body of its stages once per micro-batch, F before B before W.

    Raises:
        VerificationError: It does not; the message shows the schedule.
    """
    for program in programs:
        parts = [part for part in program.bodies if part.phase.is_repeated]
        expected = {Task(part.stage, part.phase, i) for part in parts for i in range(program.micro_batches)}
        counts = Counter(program.tasks)
        missing, extra = expected - counts.keys(), counts.keys() - expected
        twice = {task for task, count in counts.items() if count > 1}
        place = {task: i for i, task in enumerate(program.tasks)}
        early = [task for task in program.tasks if _comes_early(task, place)]
        fault = (
            f"leaves out {_names(missing)}" if missing
            else f"runs {_names(extra)}, which is no task of its {program.micro_batches} micro-batches" if extra
            else f"runs {_names(twice)} twice" if twice
            else f"runs {_names(early)} before its {_BEFORE[early[0].phase].name.lower()}" if early
            else ""
        )  # fmt: skip
        if fault:
            raise VerificationError(
                f"the schedule of {program.title} {fault}:\n" + _rows(programs, {program.row: fault}),
                remedy="give every stage each F and B of each micro-batch once, B after F",
            )


def _comes_early(task: Task, place: Mapping[Task, int]) -> bool:
    phase = task.phase
    while phase in _BEFORE:
        phase = _BEFORE[phase]
        if place.get(Task(task.stage, phase, task.micro_batch), -1) > place[task]:
            return True
    return False


def verify_messages(programs: Sequence[Program], messages: Sequence[Messages]) -> None:
    """Run the schedule on message lists: sends do not wait, receives do, messages keep their order.

    Args:
        programs: One per row.
        messages: Per row the messages of each body, in order.

    Raises:
        VerificationError: A receive meets a message of another task, or rows wait for each other; the text
            shows the schedule with an arrow.
    """
    _Simulation(programs, messages).run()


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
    programs: Sequence[Program]
    messages: Sequence[Messages]
    channels: dict[tuple[str, int, int], deque[_Sent]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        first, last = Task(-1, Phase.PREPARE, 0), Task(-1, Phase.UPDATE, 0)
        self.rows = [_Row([first, *p.tasks, last]) for p in self.programs]

    def run(self) -> None:
        """Let every row go on as far as it can until all are done."""
        moved = True
        while moved:
            moved = False
            for number in range(len(self.rows)):
                while self._advance(number):
                    moved = True
        waiting = {i: row for i, row in enumerate(self.rows) if row.task < len(row.tasks)}
        if waiting:
            raise self._deadlock(waiting)

    def _advance(self, number: int) -> bool:
        """Pass one message, or finish the task."""
        row = self.rows[number]
        if row.task == len(row.tasks):
            return False
        task = row.tasks[row.task]
        body = self.messages[number].get(Part(task.phase, task.stage), ())
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
            raise VerificationError(
                f"{self.programs[number].title} {fault} of {self.programs[sender].title}:\n"
                + self._grid({number: fault}),
                remedy="let both rows run their tasks in orders that send and receive in one sequence",
            )
        row.time = max(row.time, time)

    def _deadlock(self, waiting: Mapping[int, _Row]) -> VerificationError:
        faults = {}
        for number, row in waiting.items():
            task = row.tasks[row.task]
            message = self.messages[number][Part(task.phase, task.stage)][row.message]
            others = " and ".join(self.programs[other].title for other in message.rows)
            faults[number] = f"{_task_name(task)} waits to receive {message.name!r} from {others}"
        return VerificationError(
            "deadlock: the stages wait for each other:\n" + self._grid(faults),
            remedy="move the tasks marked, or the tasks they wait for, so that senders come first",
        )

    def _grid(self, faults: Mapping[int, str]) -> str:
        width = max((time for row in self.rows for time, _ in row.shown), default=0) + 1
        lines = []
        for number, row in enumerate(self.rows):
            names = _shown_names(self.programs[number])
            cells = dict.fromkeys(range(width), ".")
            cells.update({time: names[task] for time, task in row.shown if task.phase.is_repeated})
            line = " ".join(f"{cell:>3}" for cell in cells.values())
            lines.append(
                f"  {self.programs[number].title}: {line}"
                + (f"  <-- {faults[number]}" if number in faults else "")
            )
        return "\n".join(lines)


def _rows(programs: Sequence[Program], faults: Mapping[int, str]) -> str:
    return "\n".join(
        f"  {p.title}: {' '.join(_shown_names(p).values())}"
        + (f"  <-- {faults[p.row]}" if p.row in faults else "")
        for p in programs
    )


def _shown_names(program: Program) -> dict[Task, str]:
    """Tasks as grids show them: with the stage where a row has several."""
    several = len(program.stages) > 1
    return {task: f"{task.stage}{task}" if several else str(task) for task in program.tasks}


def _task_name(task: Task) -> str:
    return str(task) if task.phase.is_repeated else str(task.phase)


def _names(tasks: Sequence[Task] | set[Task]) -> str:
    return ", ".join(map(str, sorted(tasks)))
