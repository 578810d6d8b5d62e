"""Actions: a body of a program as what takes time: work, and communication that is waited for or is not.

Everything between two places where a device may have to wait is one piece of work, so that replaying a body costs
as much as it communicates, not as much as it computes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from superscaler.codegen.program import (
    Await,
    Collective,
    Exchange,
    Free,
    Instruction,
    Part,
    Program,
    Receive,
    Send,
)
from superscaler.ir.mesh import Mesh


@dataclass(frozen=True, slots=True)
class Work:
    """Computing, and moving memory on one device."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Meet:
    """A collective that the program waits for; it begins when the other rows that take part are there."""

    name: str
    seconds: float
    rows: tuple[int, ...]
    """The other rows."""


@dataclass(frozen=True, slots=True)
class Start:
    """A collective that goes on while the program computes."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for all collectives started, but the last few."""

    leaving: int


@dataclass(frozen=True, slots=True)
class TakeGroup:
    """Wait for a group of gathers, and set the next group on its way."""

    group: int
    next_seconds: float


@dataclass(frozen=True, slots=True)
class Give:
    """A message to devices of other rows, or of this one; the program goes on."""

    channel: str
    rows: tuple[int, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Take:
    """Wait for messages from devices of these rows."""

    channel: str
    rows: tuple[int, ...]


Action = Work | Meet | Start | Wait | TakeGroup | Give | Take
Seconds = Callable[[Program, Instruction], float]
"""Prices an instruction; how long a message is on its way."""


def find_actions(
    program: Program, rows: Mapping[int, int], seconds: Seconds
) -> Mapping[Part, tuple[Action, ...]]:
    """The actions of every body of a row.

    Args:
        program: Of the row.
        rows: Device -> its row.
        seconds: What an instruction takes.
    """
    return {part: _Body(program, rows, seconds).actions(body) for part, body in program.bodies.items()}


@dataclass(frozen=True)
class _Body:
    program: Program
    rows: Mapping[int, int]
    seconds: Seconds

    def actions(self, body: Sequence[Instruction]) -> tuple[Action, ...]:
        """Translate, and join what is computed without waiting."""
        found: list[Action] = []
        groups = self._group_seconds(body)
        taken: set[int] = set()
        if groups:
            found.append(TakeGroup(-1, groups[0]))
        for instruction in body:
            if isinstance(instruction, Collective) and instruction.group >= 0:
                if instruction.group not in taken:
                    taken.add(instruction.group)
                    found.append(TakeGroup(instruction.group, groups.get(instruction.group + 1, 0.0)))
                continue
            action = self._action(instruction)
            if isinstance(action, Work) and found and isinstance(found[-1], Work):
                found[-1] = replace(found[-1], seconds=found[-1].seconds + action.seconds)
            elif action is not None and action != Work(0.0):
                found.append(action)
        return tuple(found)

    def _group_seconds(self, body: Sequence[Instruction]) -> dict[int, float]:
        """Of each group of gathers; its members travel one after another."""
        groups: dict[int, float] = {}
        for i in body:
            if isinstance(i, Collective) and i.group >= 0:
                groups[i.group] = groups.get(i.group, 0.0) + self.seconds(self.program, i)
        return groups

    def _action(self, instruction: Instruction) -> Action | None:
        match instruction:
            case Free():
                return None
            case Await(leaving=leaving):
                return Wait(leaving)
            case Collective():
                return self._collective(instruction)
            case Send(step=step, stage=stage):
                mine = self.program.mesh_of(instruction)
                rows = self._partners(mine, step.after.mesh)
                channel = f"{self._number(mine)} -> {stage}"
                return Give(channel, rows, self.seconds(self.program, instruction))
            case Receive(step=step, stage=stage):
                mine = self.program.mesh_of(instruction)
                return Take(f"{stage} -> {self._number(mine)}", self._partners(mine, step.before.mesh))
            case Exchange():
                return self._exchange(instruction)
            case _:
                return Work(self.seconds(self.program, instruction))

    def _collective(self, instruction: Collective) -> Action:
        name = f"{instruction.step} of {instruction.write}"
        seconds = self.seconds(self.program, instruction)
        if instruction.is_started:
            return Start(name, seconds)
        mesh, axis = self.program.mesh_of(instruction), instruction.step.axis
        mine = set(self.program.devices)
        if mine.issuperset(mesh.devices):
            return Meet(name, seconds, ())
        return Meet(name, seconds, self._others(m for d in mine for m in mesh.group(axis, d)))

    def _exchange(self, instruction: Exchange) -> Action:
        """Whoever takes waits for all that give; whoever does both gives first."""
        given_by, taken_by = instruction.step.before.mesh.devices, instruction.step.after.mesh.devices
        seconds = self.seconds(self.program, instruction)
        if instruction.read and instruction.write:
            return Meet(instruction.name, seconds, self._others((*given_by, *taken_by)))
        if instruction.read:
            return Give(instruction.name, self._rows(taken_by), seconds)
        return Take(instruction.name, self._rows(given_by))

    def _partners(self, mine: Mesh, other: Mesh) -> tuple[int, ...]:
        """The rows of the devices that have the places of this row's devices in another mesh."""
        here = set(self.program.devices)
        pairs = zip(mine.devices, other.devices, strict=True)
        return self._rows(partner for device, partner in pairs if device in here)

    def _others(self, devices: Iterable[int]) -> tuple[int, ...]:
        return tuple(row for row in self._rows(devices) if row != self.program.row)

    def _rows(self, devices: Iterable[int]) -> tuple[int, ...]:
        return tuple(sorted({self.rows[device] for device in devices}))

    def _number(self, mesh: Mesh) -> int:
        return next(number for number, other in self.program.stages.items() if other == mesh)
