"""Proof that all stages' tasks run to their end: messages meet their receives, nobody waits for ever."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from superscaler.codegen.program import Program
from superscaler.errors import VerificationError
from superscaler.ir.graph import Phase
from superscaler.planner.schedule import Task


@dataclass(frozen=True, slots=True)
class Message:
    """One point of a body where a stage sends to another or receives from it."""

    kind: str
    """``send`` or ``receive``."""
    stage: int
    """The other stage."""
    name: str
    """The value, or the exchange's name."""
    channel: str = ""
    """Messages of one exchange keep their order among themselves; all others among each other."""


Messages = Mapping[Phase, Sequence[Message]]


def verify_tasks(programs: Sequence[Program], micro_batches: int, is_training: bool) -> None:
    """Every stage runs every phase of every micro-batch once, the backward after its forward.

    Raises:
        VerificationError: It does not; the message shows the schedule.
    """
    phases = (Phase.FORWARD, Phase.BACKWARD) if is_training else (Phase.FORWARD,)
    for program in programs:
        expected = {Task(program.stage, phase, i) for phase in phases for i in range(micro_batches)}
        missing, extra = expected - set(program.tasks), set(program.tasks) - expected
        twice = (
            {str(task) for task in program.tasks if program.tasks.count(task) > 1} if not missing else set()
        )
        early = [
            task
            for i, task in enumerate(program.tasks)
            if task.phase is Phase.BACKWARD
            and Task(program.stage, Phase.FORWARD, task.micro_batch) in program.tasks[i:]
        ]
        fault = (
            f"leaves out {_names(missing)}" if missing
            else f"runs {_names(extra)}, which is no task of its {micro_batches} micro-batches" if extra
            else f"runs {', '.join(sorted(twice))} twice" if twice
            else f"runs {_names(early)} before its forward" if early
            else ""
        )  # fmt: skip
        if fault:
            raise VerificationError(
                f"the schedule of stage {program.stage} {fault}:\n" + _rows(programs, {program.stage: fault}),
                remedy="give every stage each F and B of each micro-batch once, B after F",
            )


def verify_messages(programs: Sequence[Program], messages: Sequence[Messages]) -> None:
    """Run the schedule on message lists: sends do not wait, receives do, messages keep their order.

    Args:
        programs: One per stage.
        messages: Per stage the messages of each body, in order.

    Raises:
        VerificationError: A receive meets a message of another task, or stages wait for each other; the text
            shows the schedule with an arrow.
    """
    _Simulation(programs, messages).run()


@dataclass
class _Stage:
    tasks: list[tuple[Phase, int]]
    task: int = 0
    message: int = 0
    time: int = 0
    shown: list[tuple[int, str]] = field(default_factory=list)


@dataclass
class _Simulation:
    programs: Sequence[Program]
    messages: Sequence[Messages]
    channels: dict[tuple[str, int, int], deque[tuple[Phase, int, str, int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stages = [
            _Stage([(Phase.PREPARE, 0), *((t.phase, t.micro_batch) for t in p.tasks), (Phase.UPDATE, 0)])
            for p in self.programs
        ]

    def run(self) -> None:
        """Let every stage go on as far as it can until all are done."""
        moved = True
        while moved:
            moved = False
            for number in range(len(self.stages)):
                while self._advance(number):
                    moved = True
        waiting = {i: stage for i, stage in enumerate(self.stages) if stage.task < len(stage.tasks)}
        if waiting:
            raise self._deadlock(waiting)

    def _advance(self, number: int) -> bool:
        """Pass one message, or finish the task."""
        stage = self.stages[number]
        if stage.task == len(stage.tasks):
            return False
        phase, micro_batch = stage.tasks[stage.task]
        body = self.messages[number].get(phase, ())
        if stage.message == len(body):
            stage.shown.append((stage.time, _task_name(phase, micro_batch)))
            stage.time += 1 if phase in (Phase.FORWARD, Phase.BACKWARD) else 0
            stage.task, stage.message = stage.task + 1, 0
            return True
        message = body[stage.message]
        if message.kind == "send":
            queue = self.channels.setdefault((message.channel, number, message.stage), deque())
            queue.append((phase, micro_batch, message.name, stage.time + 1))
        else:
            queue = self.channels.get((message.channel, message.stage, number))
            if not queue:
                return False
            self._take(number, message, queue.popleft(), (phase, micro_batch))
        stage.message += 1
        return True

    def _take(
        self, number: int, message: Message, found: tuple[Phase, int, str, int], task: tuple[Phase, int]
    ) -> None:
        phase, micro_batch, name, time = found
        stage = self.stages[number]
        if (phase, micro_batch) != task:
            sender = message.stage
            other = f"{name!r} of {_task_name(phase, micro_batch)}"
            fault = f"receives {message.name!r} in {_task_name(*task)}, but the next message is {other}"
            raise VerificationError(
                f"stage {number} {fault} of stage {sender}:\n" + self._grid({number: fault}),
                remedy="let both stages run their tasks in orders that send and receive in one sequence",
            )
        stage.time = max(stage.time, time)

    def _deadlock(self, waiting: Mapping[int, _Stage]) -> VerificationError:
        faults = {}
        for number, stage in waiting.items():
            phase, micro_batch = stage.tasks[stage.task]
            message = self.messages[number][phase][stage.message]
            task = _task_name(phase, micro_batch)
            faults[number] = f"{task} waits to receive {message.name!r} from stage {message.stage}"
        return VerificationError(
            "deadlock: the stages wait for each other:\n" + self._grid(faults),
            remedy="move the tasks marked, or the tasks they wait for, so that senders come first",
        )

    def _grid(self, faults: Mapping[int, str]) -> str:
        width = max((time for stage in self.stages for time, _ in stage.shown), default=0) + 1
        lines = []
        for number, stage in enumerate(self.stages):
            cells = dict.fromkeys(range(width), ".")
            cells.update({time: name for time, name in stage.shown if name not in ("P", "U")})
            row = " ".join(f"{cell:>3}" for cell in cells.values())
            lines.append(f"  stage {number}: {row}" + (f"  <-- {faults[number]}" if number in faults else ""))
        return "\n".join(lines)


def _rows(programs: Sequence[Program], faults: Mapping[int, str]) -> str:
    return "\n".join(
        f"  stage {p.stage}: {' '.join(map(str, p.tasks))}"
        + (f"  <-- {faults[p.stage]}" if p.stage in faults else "")
        for p in programs
    )


def _task_name(phase: Phase, micro_batch: int) -> str:
    return f"{phase}{micro_batch}" if phase in (Phase.FORWARD, Phase.BACKWARD) else str(phase)


def _names(tasks: Sequence[Task] | set[Task]) -> str:
    return ", ".join(map(str, sorted(tasks)))
