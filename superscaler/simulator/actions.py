"""Actions: a body of a program as what takes time: work, and communication that is waited for or is not.

Everything between two places where a device may have to wait is one piece of work, so that replaying a body costs
as much as it communicates, not as much as it computes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from superscaler.codegen.program import (
    Await,
    Collective,
    Exchange,
    Free,
    Instruction,
    Keep,
    Part,
    Program,
    Receive,
    Send,
)
from superscaler.ir.bucket import has_room
from superscaler.ir.graph import Phase
from superscaler.ir.mesh import Mesh
from superscaler.simulator.instruction_seconds import InstructionPrices


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
    axis: str = ""
    """The mesh axis it is over; what is over another goes on meanwhile."""


@dataclass(frozen=True, slots=True)
class Start:
    """Collectives that travel together while the program computes."""

    name: str
    seconds: float
    count: int = 1
    """How many."""
    axis: str = ""


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for all collectives started, but the last few."""

    leaving: int


@dataclass(frozen=True, slots=True)
class TakeGroup:
    """Wait for a group of gathers, and set the next group on its way."""

    group: int
    next_seconds: float
    axis: str = ""


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


@dataclass(frozen=True, slots=True)
class TaskActions:
    """What the tasks of a row do."""

    bodies: Mapping[Part, tuple[Action, ...]]
    last: Mapping[Part, tuple[Action, ...]]
    """Of the last micro-batch of a stage, where it starts what all micro-batches have added up."""


def find_actions(program: Program, rows: Mapping[int, int], prices: InstructionPrices) -> TaskActions:
    """The actions of every body of a row.

    Args:
        program: Of the row.
        rows: Device -> its row.
        prices: What instructions take.
    """
    update = program.bodies.get(Part(Phase.UPDATE), ())
    late = {i.read: i for i in update if isinstance(i, Collective) and i.is_started}
    rest = tuple(i for i in update if not (isinstance(i, Collective) and i.is_started))
    bodies = {**program.bodies, Part(Phase.UPDATE): rest}
    last = {
        part: body
        for part, body in bodies.items()
        if part.phase.is_repeated and any(isinstance(i, Keep) and i.write in late for i in body)
    }
    return TaskActions(
        {part: _Body(program, rows, prices, part).actions(body) for part, body in bodies.items()},
        {part: _Body(program, rows, prices, part, late).actions(body) for part, body in last.items()},
    )


@dataclass
class _Body:
    program: Program
    rows: Mapping[int, int]
    prices: InstructionPrices
    part: Part
    late: Mapping[str, Collective] = field(default_factory=dict)
    """Kept value -> its sum over devices, which starts here."""

    def __post_init__(self) -> None:
        self.found: list[Action] = []
        self.filling: dict[Any, list[Collective]] = {}
        """Buckets that have not set out, by what their collectives have in common."""

    def actions(self, body: Sequence[Instruction]) -> tuple[Action, ...]:
        """Translate, and join what is computed without waiting and what travels together."""
        groups = self._groups(body)
        if groups:
            self.found.append(TakeGroup(-1, self._together(groups[0]), groups[0][0].step.axis))
        last = {} if self.part.phase.is_repeated else {self._kind(i): i for i in body if _is_waited_for(i)}
        for instruction in body:
            if isinstance(instruction, Collective) and instruction.group >= 0:
                if instruction is groups[instruction.group][0]:
                    coming = groups.get(instruction.group + 1)
                    seconds = self._together(coming) if coming else 0.0
                    self._add(TakeGroup(instruction.group, seconds, instruction.step.axis))
            elif isinstance(instruction, Collective) and instruction.is_started:
                self._fill(instruction)
            elif last and _is_waited_for(instruction):
                self._join(instruction, last)
            else:
                if isinstance(instruction, Await):
                    self._set_out()
                self._add(self._action(instruction))
                if isinstance(instruction, Keep) and instruction.write in self.late:
                    self._fill(self.late[instruction.write])
        self._set_out()
        return tuple(self.found)

    def _add(self, action: Action | None) -> None:
        before = self.found[-1] if self.found else None
        if isinstance(action, Work) and isinstance(before, Work):
            self.found[-1] = Work(before.seconds + action.seconds)
        elif action is not None and action != Work(0.0):
            self.found.append(action)

    def _groups(self, body: Sequence[Instruction]) -> dict[int, list[Collective]]:
        """Gathers that travel while those of the group before are used."""
        groups: dict[int, list[Collective]] = {}
        for i in body:
            if isinstance(i, Collective) and i.group >= 0:
                groups.setdefault(i.group, []).append(i)
        return groups

    def _fill(self, collective: Collective) -> None:
        """Put a sum into its bucket, which sets out when there is no room for the next."""
        size = self.prices.num_bytes(self.program, collective)
        bucket = self.filling.setdefault(self._kind(collective), [])
        if bucket and not has_room(sum(self.prices.num_bytes(self.program, c) for c in bucket), size):
            self._start(bucket)
            bucket.clear()
        bucket.append(collective)

    def _set_out(self) -> None:
        for bucket in filter(None, self.filling.values()):
            self._start(bucket)
        self.filling.clear()

    def _start(self, bucket: Sequence[Collective]) -> None:
        name = f"{bucket[0].step} of {bucket[0].write}" + (f" and {len(bucket) - 1} more" * (len(bucket) > 1))
        self.found.append(Start(name, self._together(bucket), len(bucket), bucket[0].step.axis))

    def _join(self, collective: Instruction, last: Mapping[Any, Instruction]) -> None:
        """Of the update's collectives, those of a kind travel together, where the last of them is."""
        assert isinstance(collective, Collective)
        kind = self._kind(collective)
        self.filling.setdefault(kind, []).append(collective)
        if last[kind] is collective:
            joined = self.filling.pop(kind)
            self.found.append(replace(self._meet(collective), seconds=self._together(joined)))

    def _kind(self, instruction: Instruction) -> Any:
        """What collectives that travel together have in common."""
        if not isinstance(instruction, Collective):
            return None
        step, value = instruction.step, self.program.values[instruction.read]
        return (
            step.kind,
            step.before.mesh,
            step.axis,
            step.before.reducer,
            value.dtype,
            instruction.is_started,
        )

    def _together(self, collectives: Sequence[Collective]) -> float:
        return self.prices.together(self.program, collectives)

    def _action(self, instruction: Instruction) -> Action | None:
        match instruction:
            case Free():
                return None
            case Await(leaving=leaving):
                return Wait(leaving)
            case Collective():
                return self._meet(instruction)
            case Send(step=step, stage=stage):
                mine = self.program.mesh_of(instruction)
                rows = self._partners(mine, step.after.mesh)
                channel = f"{self._number(mine)} -> {stage}"
                return Give(channel, rows, self.prices.seconds(self.program, instruction))
            case Receive(step=step, stage=stage):
                mine = self.program.mesh_of(instruction)
                return Take(f"{stage} -> {self._number(mine)}", self._partners(mine, step.before.mesh))
            case Exchange():
                return self._exchange(instruction)
            case _:
                return Work(self.prices.seconds(self.program, instruction))

    def _meet(self, collective: Collective) -> Meet:
        name = f"{collective.step} of {collective.write}"
        seconds = self.prices.seconds(self.program, collective)
        mesh, axis = self.program.mesh_of(collective), collective.step.axis
        mine = set(self.program.devices)
        if mine.issuperset(mesh.devices):
            return Meet(name, seconds, (), axis)
        return Meet(name, seconds, self._others(m for d in mine for m in mesh.group(axis, d)), axis)

    def _exchange(self, instruction: Exchange) -> Action:
        """Whoever takes waits for all that give; whoever does both gives first."""
        given_by, taken_by = instruction.step.before.mesh.devices, instruction.step.after.mesh.devices
        seconds = self.prices.seconds(self.program, instruction)
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


def _is_waited_for(instruction: Instruction) -> bool:
    return isinstance(instruction, Collective) and not instruction.is_started and instruction.group < 0
