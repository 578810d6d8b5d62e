"""One device of the virtual cluster: a generator over its program, with tensors of its own."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from superscaler.codegen.instruction_text import describe
from superscaler.codegen.pieces import combine
from superscaler.codegen.program import (
    Collective,
    Compute,
    Exchange,
    Free,
    Instruction,
    Keep,
    Mask,
    Offset,
    Program,
    Receive,
    Send,
    Slice,
    Store,
)
from superscaler.errors import VerificationError
from superscaler.ir.graph import Operator, Phase
from superscaler.ir.interpret import run_operator
from superscaler.ir.layout import Extent, Layout
from superscaler.ir.mesh import TIME, Mesh
from superscaler.ir.tensor import Role
from superscaler.planner.exchange import exchange_moves
from superscaler.planner.steps import StepKind, space_partial

Channel = tuple[str, int, int]
"""(name of the exchange, or empty; sending device; receiving device)."""


@dataclass(frozen=True, slots=True)
class Meeting:
    """A device waits until all members are there."""

    key: tuple[Any, ...]
    members: tuple[int, ...]
    payload: Any
    finish: Callable[[dict[int, Any]], dict[int, Any]]
    """From what members brought to what each takes away."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A device waits for the next message of another."""

    channel: Channel


Wait = Meeting | Delivery


@dataclass
class Device:
    """One device's tensors, and where it is in its program."""

    program: Program
    number: int
    step: int
    watch: frozenset[str]
    meshes: Sequence[Mesh]
    """Of all stages."""
    outbox: Callable[[Channel, Any], None]
    coordinates: dict[str, int] = field(init=False)
    whole: dict[str, Tensor] = field(default_factory=dict)
    """Values that live for the whole step."""
    by_micro_batch: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    fed: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    recorded: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    position: str = "not started"

    def __post_init__(self) -> None:
        self.coordinates = self.program.mesh.coordinates(self.number)
        self.kept_for = set(self.watch) | set(self.program.outputs.values())

    def run(self) -> Generator[Wait, Any, None]:
        """Every task in order; yields what it waits for."""
        tasks = [
            (Phase.PREPARE, 0),
            *((task.phase, task.micro_batch) for task in self.program.tasks),
            (Phase.UPDATE, 0),
        ]
        for phase, micro_batch in tasks:
            for instruction in self.program.bodies[phase]:
                name = str(phase) if phase in (Phase.PREPARE, Phase.UPDATE) else f"{phase}{micro_batch}"
                self.position = f"{name}: {describe(instruction)}"
                try:
                    yield from self._execute(instruction, phase, micro_batch)
                except (RuntimeError, IndexError, TypeError, AssertionError) as error:
                    source = self.program.graph.by_name.get(getattr(instruction, "operator", ""))
                    raise VerificationError(
                        f"device {self.number} fails in {self.position}\n  {error}",
                        where=source.source if source else "",
                    ) from error
        self.position = "done"

    def _execute(
        self, instruction: Instruction, phase: Phase, micro_batch: int
    ) -> Generator[Wait, Any, None]:
        here = {**self.coordinates, TIME: micro_batch}

        def read(name: str) -> Tensor:
            return self._read(name, phase, micro_batch)

        def write(name: str, value: Tensor) -> None:
            self._write(name, value, phase, micro_batch, here)

        match instruction:
            case Compute():
                results = self._compute(instruction, read, here)
                for name, value in zip(instruction.writes, results, strict=True):
                    write(name, value)
            case Collective():
                write(instruction.write, (yield self._collective(instruction, read(instruction.read))))
            case Slice():
                mesh = self.program.mesh
                start, length = instruction.start.at(mesh, here), instruction.length.at(mesh, here)
                write(instruction.write, read(instruction.read).narrow(instruction.dim, start, length))
            case Mask():
                value = read(instruction.read)
                write(
                    instruction.write, value if here[instruction.step.axis] == 0 else torch.zeros_like(value)
                )
            case Send():
                self.outbox(("", self.number, self._partner(instruction.stage)), read(instruction.read))
            case Receive():
                write(
                    instruction.write, (yield Delivery(("", self._partner(instruction.stage), self.number)))
                )
            case Exchange():
                yield from self._exchange(instruction, micro_batch, read, write)
            case Keep():
                value = read(instruction.read)
                before = self.whole.get(instruction.write) if instruction.add else None
                value = value if before is None else before + value
                self._check(instruction.write, value, here)
                self._record(instruction.write, value, 0)
                self.whole[instruction.write] = value
            case Store():
                value = read(instruction.read)
                self._check(instruction.write, value, here)
                self.whole[instruction.write] = value
            case Free():
                for name in instruction.values:
                    self._free(name, phase, micro_batch)

    # values

    def _read(self, name: str, phase: Phase, micro_batch: int) -> Tensor:
        among = phase in (Phase.FORWARD, Phase.BACKWARD)
        if among and name in self.by_micro_batch.get(micro_batch, {}):
            return self.by_micro_batch[micro_batch][name]
        if (name, micro_batch) in self.fed:
            return self.fed[name, micro_batch]
        if name not in self.whole:
            raise VerificationError(
                f"device {self.number} reads {name!r}, which it does not hold, in {self.position}"
            )
        return self.whole[name]

    def _write(
        self, name: str, value: Tensor, phase: Phase, micro_batch: int, here: Mapping[str, int]
    ) -> None:
        self._check(name, value, here)
        among = phase in (Phase.FORWARD, Phase.BACKWARD)
        self._record(name, value, micro_batch if among else 0)
        if among:
            self.by_micro_batch.setdefault(micro_batch, {})[name] = value
        else:
            self.whole[name] = value

    def _record(self, name: str, value: Tensor, micro_batch: int) -> None:
        if name in self.kept_for or self.program.values[name].tensor in self.watch:
            self.recorded[name, micro_batch] = value

    def _check(self, name: str, value: Tensor, here: Mapping[str, int]) -> None:
        declared = self.program.values[name]
        shape = tuple(extent.at(self.program.mesh, here) for extent in declared.shape)
        if tuple(value.shape) != shape or value.dtype != getattr(torch, declared.dtype):
            raise VerificationError(
                f"device {self.number} makes {name!r} {value.dtype} {list(value.shape)}, "
                f"declared {declared.dtype} {list(shape)}, in {self.position}"
            )

    def _free(self, name: str, phase: Phase, micro_batch: int) -> None:
        held = (
            self.whole if phase in (Phase.PREPARE, Phase.UPDATE) else self.by_micro_batch.get(micro_batch, {})
        )
        if name not in held:
            raise VerificationError(
                f"device {self.number} frees {name!r}, which it does not hold, in {self.position}"
            )
        del held[name]

    # operators

    def _compute(
        self, instruction: Compute, read: Callable[[str], Tensor], here: Mapping[str, int]
    ) -> tuple[Tensor, ...]:
        graph = self.program.graph
        reads: list[Any] = [
            self.step if name in graph.tensors and graph.tensors[name].role is Role.STEP else read(name)
            for name in instruction.reads
        ]
        operator = Operator(
            instruction.operator or "reshape",
            instruction.kind,
            instruction.reads,
            instruction.writes,
            self._local(instruction.arguments, here),
            self._local(instruction.keywords, here),
        )
        return run_operator(operator, reads)

    def _local(self, value: Any, here: Mapping[str, int]) -> Any:
        """Arguments with this device's numbers in place of extents and offsets."""
        if isinstance(value, Extent | Offset):
            return value.at(self.program.mesh, here)
        if isinstance(value, tuple | list):
            return type(value)(self._local(item, here) for item in value)
        return value

    # communication

    def _partner(self, stage: int) -> int:
        """The device at this one's place in another stage."""
        index = self.program.mesh.devices.index(self.number)
        devices = self.meshes[stage].devices if 0 <= stage < len(self.meshes) else ()
        if index >= len(devices):
            raise VerificationError(
                f"device {self.number} has no partner in stage {stage}, in {self.position}"
            )
        return devices[index]

    def _collective(self, instruction: Collective, value: Tensor) -> Meeting:
        members = self.program.mesh.group(instruction.step.axis, self.number)

        def finish(brought: dict[int, Any]) -> dict[int, Any]:
            described = {
                (i.step.kind, i.step.before.reducer, i.dim, i.from_dim, v.dtype, v.shape)
                for i, v in brought.values()
            }
            if len(described) > 1:
                raise VerificationError(f"devices {members} meet in different collectives: {described}")
            results = _run_collective(instruction, [brought[member][1] for member in members])
            return dict(zip(members, results, strict=True))

        return Meeting(("collective", members), members, (instruction, value), finish)

    def _exchange(
        self,
        instruction: Exchange,
        micro_batch: int,
        read: Callable[[str], Tensor],
        write: Callable[[str, Tensor], None],
    ) -> Generator[Wait, Any, None]:
        """Send every box this device holds, then wait for those it wants."""
        step = instruction.step
        moves = exchange_moves(step, micro_batch)
        value = None
        if instruction.read:
            value = read(instruction.read).reshape(_fine_shape(step.before, self.number, micro_batch))
        for move in moves:
            if move.source == self.number:
                assert value is not None, "nothing to send"
                box = value[tuple(slice(*part) for part in move.source_box)]
                self.outbox((instruction.name, move.source, move.target), box)
        if not instruction.write:
            return
        is_sum = bool(space_partial(step.before)) and not space_partial(step.after)
        declared = self.program.values[instruction.write]
        target = torch.zeros(
            _fine_shape(step.after, self.number, micro_batch), dtype=getattr(torch, declared.dtype)
        )
        for move in moves:
            if move.target == self.number:
                box = yield Delivery((instruction.name, move.source, move.target))
                part = target[tuple(slice(*part) for part in move.target_box)]
                part.add_(box) if is_sum else part.copy_(box)
        here = {**self.coordinates, TIME: micro_batch}
        write(
            instruction.write,
            target.reshape([extent.at(self.program.mesh, here) for extent in declared.shape]),
        )


def _fine_shape(layout: Layout, device: int, micro_batch: int) -> tuple[int, ...]:
    return layout.region({**layout.mesh.coordinates(device), TIME: micro_batch}).shape


def _run_collective(instruction: Collective, values: list[Tensor]) -> list[Tensor]:
    """What every member of a group gets, in the group's order."""
    count, dim = len(values), instruction.dim
    match instruction.step.kind:
        case StepKind.ALL_REDUCE:
            return [combine(values, instruction.step.before.reducer)] * count
        case StepKind.REDUCE_SCATTER:
            return list(_equal_pieces(combine(values, "sum"), count, dim))
        case StepKind.ALL_GATHER:
            return [torch.cat(values, dim)] * count
        case StepKind.ALL_TO_ALL:
            return list(_equal_pieces(torch.cat(values, instruction.from_dim), count, dim))
        case kind:
            raise VerificationError(f"{kind} is no collective: {describe(instruction)}")


def _equal_pieces(value: Tensor, count: int, dim: int) -> Sequence[Tensor]:
    if value.shape[dim] % count:
        raise VerificationError(f"dim {dim} of {list(value.shape)} cannot be scattered over {count} devices")
    return [part.contiguous() for part in value.chunk(count, dim)]
