"""Actions: a body of a program as what takes time: work, and communication that is waited for or is not.

Everything between two places where a device may have to wait is one piece of work, so that replaying a body costs
as much as it communicates, not as much as it computes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from superscaler.codegen.program import (
    Await,
    Collective,
    Exchange,
    Free,
    FromHost,
    Instruction,
    Part,
    Program,
    Receive,
    Send,
)
from superscaler.codegen.stream import streamed_groups
from superscaler.codegen.sum_messages import SumMessage, sum_messages
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
    axis: str = ""
    is_accumulated: bool = False
    """Whether it sums what micro-batches have added up, so that the update waits for it."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for what was started, but for the last few messages."""

    leaving: int


@dataclass(frozen=True, slots=True)
class WaitAccumulated:
    """Wait for the sums of what micro-batches have added up."""


@dataclass(frozen=True, slots=True)
class TakeGroup:
    """Wait for a group of gathers, and set the next group on its way."""

    group: int
    next_seconds: float
    axis: str = ""


@dataclass(frozen=True, slots=True)
class TakeFetched:
    """Wait for a group of parameters from host memory, and set the next group on its way."""

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


Action = Work | Meet | Start | Wait | WaitAccumulated | TakeGroup | TakeFetched | Give | Take


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
    joined_bytes = prices.prices.cluster.transport.joined_bytes
    messages = sum_messages(program, joined_bytes)

    def actions(part: Part, *, is_last: bool) -> tuple[Action, ...]:
        own = [one for one in messages if one.part == part and (is_last or not one.is_accumulated)]
        return _Body(program, rows, prices, part, own).actions()

    last = {one.part for one in messages if one.is_accumulated and one.part.phase.is_repeated}
    return TaskActions(
        {part: actions(part, is_last=not part.phase.is_repeated) for part in program.bodies},
        {part: actions(part, is_last=True) for part in program.bodies if part in last},
    )


@dataclass
class _Body:
    program: Program
    rows: Mapping[int, int]
    prices: InstructionPrices
    part: Part
    messages: Sequence[SumMessage]
    """Of sums, in the order in which they set out."""

    def __post_init__(self) -> None:
        self.found: list[Action] = []
        self.joining: dict[Any, list[Collective]] = {}
        """What travels with the last of its kind, of what the update waits for."""
        self.started: list[str] = []
        """What has been started and not waited for."""
        self.departed: list[SumMessage] = []
        """Messages that have set out, of what the body itself starts."""
        self.fetches: list[float] = []
        """Seconds of each group of parameters from host memory."""
        self.first_fetched: set[str] = set()
        self.setting_out: dict[int, list[SumMessage]] = {}
        for message in self.messages:
            self.setting_out.setdefault(message.place, []).append(message)

    def actions(self) -> tuple[Action, ...]:
        """Translate, and join what is computed without waiting and what travels together."""
        body = self.program.bodies[self.part]
        groups = self._groups(body)
        if groups:
            self._take(-1, groups[0], groups[0][0].step.axis)
        self._fetch_first(body)
        last = {} if self.part.phase.is_repeated else {self._kind(i): i for i in body if _is_waited_for(i)}
        for place, instruction in enumerate(body):
            if isinstance(instruction, Await):
                self._set_out(place)
                self.found.append(self._wait(instruction.leaving))
                continue
            if isinstance(instruction, Collective) and instruction.group >= 0:
                self._take_group(instruction, groups)
            elif isinstance(instruction, FromHost) and instruction.group >= 0:
                self._take_fetched(instruction)
            elif isinstance(instruction, Collective) and instruction.is_started:
                self.started.append(instruction.write)
            elif last and _is_waited_for(instruction):
                self._join(instruction, last)
            else:
                self._add(self._action(instruction))
            self._set_out(place)
        return tuple(self.found)

    def _take_group(self, collective: Collective, groups: Mapping[int, Sequence[Collective]]) -> None:
        if collective is not groups[collective.group][0]:
            return
        self._take(collective.group, groups.get(collective.group + 1, ()), collective.step.axis)

    def _take(self, group: int, coming: Sequence[Collective], axis: str) -> None:
        """Wait for a group of gathers, and set the next on its way."""
        seconds = self._beside(str(coming[0].step), self._together(coming), axis) if coming else 0.0
        self.found.append(TakeGroup(group, seconds, axis))

    def _fetch_first(self, body: Sequence[Instruction]) -> None:
        """Set the first group of parameters on its way from host memory."""
        groups = streamed_groups(body)
        self.fetches = [sum(self.prices.seconds(self.program, i) for i in group) for group in groups]
        self.first_fetched = {group[0].write for group in groups}
        if groups:
            self._fetch(-1)

    def _take_fetched(self, instruction: FromHost) -> None:
        if instruction.write in self.first_fetched:
            self._fetch(instruction.group)

    def _fetch(self, group: int) -> None:
        """Wait for a group, and set the next on its way; where cores also copy, they do that at once."""
        coming = self.fetches[group + 1] if group + 1 < len(self.fetches) else 0.0
        if self.prices.prices.cluster.transport.takes_cores:
            self._add(Work(coming))
        else:
            self.found.append(TakeFetched(group, coming))

    def _beside(self, name: str, seconds: float, axis: str) -> float:
        """What of a communication goes on beside computing; where cores do both, they wait for it at once."""
        if not self.prices.prices.cluster.transport.takes_cores:
            return seconds
        self.found.append(Meet(name, seconds, (), axis))
        return 0.0

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

    def _set_out(self, place: int) -> None:
        """Start the messages that set out with an instruction."""
        for message in self.setting_out.get(place, ()):
            first, more = message.sums[0], len(message.sums) - 1
            name = f"{first.step} of {first.write}" + (f" and {more} more" if more else "")
            seconds = self._beside(name, self._together(message.sums), first.step.axis)
            self.found.append(Start(name, seconds, first.step.axis, message.is_accumulated))
            if not message.is_accumulated:
                self.departed.append(message)

    def _wait(self, leaving: int) -> Action:
        """Wait for the messages in which all but the last few sums are that the body has started."""
        if not self.part.phase.is_repeated:
            return WaitAccumulated()
        done = set(self.started[: max(0, len(self.started) - leaving)])
        del self.started[: len(done)]
        later = takewhile(lambda one: done.isdisjoint(i.write for i in one.sums), reversed(self.departed))
        return Wait(len(list(later)))

    def _join(self, collective: Instruction, last: Mapping[Any, Instruction]) -> None:
        """Of the update's collectives, those of a kind travel together, where the last of them is."""
        assert isinstance(collective, Collective)
        kind = self._kind(collective)
        self.joining.setdefault(kind, []).append(collective)
        if last[kind] is collective:
            joined = self.joining.pop(kind)
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
        )

    def _together(self, collectives: Sequence[Collective]) -> float:
        return self.prices.together(self.program, collectives)

    def _action(self, instruction: Instruction) -> Action | None:
        match instruction:
            case Free():
                return None
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
