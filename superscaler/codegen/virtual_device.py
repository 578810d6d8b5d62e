"""One device of the virtual cluster: a generator over its row's program, with tensors of its own."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from superscaler.codegen.instruction_text import describe
from superscaler.codegen.pieces import combine
from superscaler.codegen.program import (
    Await,
    Collective,
    Compute,
    Exchange,
    Free,
    FromHost,
    Instruction,
    Keep,
    Mask,
    Offset,
    Part,
    Program,
    Receive,
    Send,
    Slice,
    Store,
    ToHost,
)
from superscaler.errors import VerificationError
from superscaler.ir.graph import Operator, Phase
from superscaler.ir.interpret import run_operator
from superscaler.ir.layout import Extent, Layout
from superscaler.ir.mesh import TIME, Mesh
from superscaler.ir.tensor import Role
from superscaler.planner.exchange import exchange_moves
from superscaler.planner.steps import Step, StepKind, space_partial

Channel = tuple[str, int, int]
"""(name of the exchange, or the pair of stages; sending device; receiving device)."""


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
    whole: dict[str, Tensor] = field(default_factory=dict)
    """Values that live for the whole step."""
    by_micro_batch: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    fed: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    recorded: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    under_way: list[list[str]] = field(default_factory=list)
    """Per reduction that was started the values that are not there yet, oldest first."""
    position: str = "not started"

    def __post_init__(self) -> None:
        self.kept_for = set(self.watch) | set(self.program.outputs.values())

    def run(self) -> Generator[Wait, Any, None]:
        """Every task in order; yields what it waits for."""
        tasks = [
            (Part(Phase.PREPARE), 0),
            *((Part(task.phase, task.stage), task.micro_batch) for task in self.program.tasks),
            (Part(Phase.UPDATE), 0),
        ]
        for part, micro_batch in tasks:
            for instruction in self.program.bodies[part]:
                name = f"{part.phase}{micro_batch} of stage {part.stage}" if part.phase.is_repeated else part
                self.position = f"{name}: {describe(instruction)}"
                try:
                    yield from self._execute(instruction, part.phase, micro_batch)
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
        mesh = None if isinstance(instruction, Free | Await) else self.program.mesh_of(instruction)
        here = self.coordinates(mesh, micro_batch) if mesh else {}
        wants_host = isinstance(instruction, FromHost) or (
            isinstance(instruction, Store) and self.program.values[instruction.write].host
        )

        def read(name: str) -> Tensor:
            if name in self.program.values and self.program.values[name].host != wants_host:
                place = "on the device" if wants_host else "in host memory"
                raise VerificationError(f"device {self.number} reads {name!r} {place}, in {self.position}")
            return self._read(name, phase, micro_batch)

        def write(name: str, value: Tensor) -> None:
            self._write(name, value, phase, micro_batch, here)

        match instruction:
            case Compute():
                results = self._compute(instruction, read, mesh, here)
                for name, value in zip(instruction.writes, results, strict=True):
                    write(name, value)
            case Collective():
                write(instruction.write, (yield self._collective(instruction, read(instruction.read))))
                if instruction.is_started:
                    self.under_way.append([instruction.write])
            case Await(leaving=leaving):
                self.under_way = self.under_way[max(0, len(self.under_way) - leaving) :]
            case Slice():
                assert mesh is not None
                start, length = instruction.start.at(mesh, here), instruction.length.at(mesh, here)
                write(instruction.write, read(instruction.read).narrow(instruction.dim, start, length))
            case Mask():
                value = read(instruction.read)
                write(
                    instruction.write, value if here[instruction.step.axis] == 0 else torch.zeros_like(value)
                )
            case Send():
                step = instruction.step
                receiver = self._partner(step.before.mesh, self.meshes[instruction.stage])
                self.outbox((_channel(step), self.number, receiver), read(instruction.read))
            case Receive():
                step = instruction.step
                sender = self._partner(step.after.mesh, self.meshes[instruction.stage])
                write(instruction.write, (yield Delivery((_channel(step), sender, self.number))))
            case Exchange():
                yield from self._exchange(instruction, micro_batch, read, write)
            case Keep():
                self._keep(instruction, phase, micro_batch, here)
            case Store():
                value = read(instruction.read)
                self._check(instruction.write, value, here)
                self.whole[instruction.write] = value
            case ToHost() | FromHost():
                write(instruction.write, read(instruction.read).clone())
            case Free():
                for name in instruction.values:
                    self._free(name, phase, micro_batch)

    def _keep(self, instruction: Keep, phase: Phase, micro_batch: int, here: Mapping[str, int]) -> None:
        """Add a value up, or keep the last; what is not there yet is kept before it arrives."""
        value = self._held(instruction.read, phase, micro_batch)
        for names in self.under_way:
            names += [instruction.write] if instruction.read in names else []
        before = self.whole.get(instruction.write) if instruction.add else None
        value = value if before is None else before + value
        self._check(instruction.write, value, here)
        self._record(instruction.write, value, 0)
        self.whole[instruction.write] = value

    def coordinates(self, mesh: Mesh, micro_batch: int) -> dict[str, int]:
        """Where this device lies in a mesh, and in time."""
        return {**mesh.coordinates(self.number), TIME: micro_batch}

    # values

    def _read(self, name: str, phase: Phase, micro_batch: int) -> Tensor:
        if any(name in names for names in self.under_way):
            raise VerificationError(
                f"device {self.number} reads {name!r}, which is under way, in {self.position}"
            )
        return self._held(name, phase, micro_batch)

    def _held(self, name: str, phase: Phase, micro_batch: int) -> Tensor:
        if phase.is_repeated and name in self.by_micro_batch.get(micro_batch, {}):
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
        self._record(name, value, micro_batch if phase.is_repeated else 0)
        if phase.is_repeated:
            self.by_micro_batch.setdefault(micro_batch, {})[name] = value
        else:
            self.whole[name] = value

    def _record(self, name: str, value: Tensor, micro_batch: int) -> None:
        if name in self.kept_for or self.program.values[name].tensor in self.watch:
            self.recorded[name, micro_batch] = value

    def _check(self, name: str, value: Tensor, here: Mapping[str, int]) -> None:
        declared = self.program.values[name]
        mesh = declared.layout.mesh
        shape = tuple(extent.at(mesh, here) for extent in declared.shape)
        if tuple(value.shape) != shape or value.dtype != getattr(torch, declared.dtype):
            raise VerificationError(
                f"device {self.number} makes {name!r} {value.dtype} {list(value.shape)}, "
                f"declared {declared.dtype} {list(shape)}, in {self.position}"
            )

    def _free(self, name: str, phase: Phase, micro_batch: int) -> None:
        held = self.by_micro_batch.get(micro_batch, {}) if phase.is_repeated else self.whole
        if name not in held:
            raise VerificationError(
                f"device {self.number} frees {name!r}, which it does not hold, in {self.position}"
            )
        del held[name]

    # operators

    def _compute(
        self, instruction: Compute, read: Callable[[str], Tensor], mesh: Mesh | None, here: Mapping[str, int]
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
            self._local(instruction.arguments, mesh, here),
            self._local(instruction.keywords, mesh, here),
        )
        return run_operator(operator, reads)

    def _local(self, value: Any, mesh: Mesh | None, here: Mapping[str, int]) -> Any:
        """Arguments with this device's numbers in place of extents and offsets."""
        if isinstance(value, Extent | Offset):
            assert mesh is not None
            return value.at(mesh, here)
        if isinstance(value, tuple | list):
            return type(value)(self._local(item, mesh, here) for item in value)
        return value

    # communication

    def _partner(self, mesh: Mesh, other: Mesh) -> int:
        """The device at this one's place in another stage."""
        index = mesh.devices.index(self.number)
        if index >= len(other.devices):
            raise VerificationError(f"device {self.number} has no partner in {other}, in {self.position}")
        return other.devices[index]

    def _collective(self, instruction: Collective, value: Tensor) -> Meeting:
        members = instruction.step.after.mesh.group(instruction.step.axis, self.number)

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
        if instruction.read:
            value = read(instruction.read).reshape(_fine_shape(step.before, self.number, micro_batch))
            for move in moves:
                if move.source == self.number:
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
        mesh = step.after.mesh
        here = self.coordinates(mesh, micro_batch)
        write(instruction.write, target.reshape([extent.at(mesh, here) for extent in declared.shape]))


def _channel(step: Step) -> str:
    """Messages of one pair of stages keep their order."""
    return f"{step.before.mesh} -> {step.after.mesh}"


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
