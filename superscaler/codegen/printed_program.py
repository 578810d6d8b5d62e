"""A program made ready for printing: names, who reads what, and under which keys values are kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from superscaler.codegen.names import identifier, name_tensors
from superscaler.codegen.program import (
    Collective,
    Compute,
    Free,
    Instruction,
    Keep,
    LocalValue,
    Part,
    Program,
    Send,
    ToHost,
    reads_of,
    writes_of,
)
from superscaler.codegen.sizes import Cut, name_cuts
from superscaler.ir.float8 import DTYPE_OF_CASTS
from superscaler.ir.graph import AGAIN, Graph, Operator, Phase
from superscaler.ir.import_fx import plain_name
from superscaler.ir.mesh import Mesh
from superscaler.ir.tensor import Role
from superscaler.planner.plan import Plan

_FORGOTTEN_FROM = 8
"""Which part of the largest value others must be together, to be worth a ``del``."""


@dataclass(frozen=True)
class PrintedProgram:
    """A program and what its source is written from."""

    plan: Plan
    program: Program

    @property
    def graph(self) -> Graph:
        """The logical graph."""
        return self.program.graph

    @property
    def micro_batches(self) -> int:
        """Micro-batches per step."""
        return self.program.micro_batches

    @property
    def hosts_several(self) -> bool:
        """Whether the program has several stages."""
        return len(self.program.stages) > 1

    def number(self, mesh: Mesh) -> int:
        """The number of the stage a mesh belongs to."""
        return next(number for number, own in self.program.stages.items() if own == mesh)

    @cached_property
    def ambiguous(self) -> frozenset[str]:
        """Names of axes along which these devices lie differently in different stages."""
        meshes = {(mesh.devices, mesh.axes): mesh for mesh in self.program.stages.values()}
        found: set[str] = set()
        for axis in {name for mesh in meshes.values() for name in mesh.names} if len(meshes) > 1 else ():
            places = {
                tuple((mesh.group(axis, d), mesh.coordinates(d)[axis]) for d in self.program.devices)
                for mesh in meshes.values()
                if axis in mesh.names
            }
            if len(places) > 1:
                found.add(axis)
        return frozenset(found)

    def meets_other_rows(self, instruction: Instruction) -> bool:
        """Whether devices of other rows take part in a collective."""
        if not isinstance(instruction, Collective):
            return False
        mesh, devices = self.program.mesh_of(instruction), self.program.devices
        return not set(mesh.group(instruction.step.axis, devices[0])) <= set(devices)

    def meets_like_rows(self, instruction: Collective) -> bool:
        """Whether all rows that take part in a collective host the same stages, and so are alike."""
        group = self.program.mesh_of(instruction).group(instruction.step.axis, self.program.devices[0])
        rows = self.plan.materialized.rows
        return len({row.stages for row in rows if not set(row.devices).isdisjoint(group)}) == 1

    def axis_variable(self, mesh: Mesh, axis: str) -> str:
        """What a function calls an axis of a stage's mesh: ``tp``, or ``tp_2`` where other stages have another."""
        return f"{axis}_{self.number(mesh)}" if axis in self.ambiguous else axis

    def named_axis(self, mesh: Mesh, axis: str) -> tuple[str, str]:
        """The variable of an axis of a stage's mesh, and the expression it stands for."""
        stage = f", {self.number(mesh)}" if axis in self.ambiguous else ""
        return self.axis_variable(mesh, axis), f'rt.axis("{axis}"{stage})'

    @cached_property
    def axis_variables(self) -> frozenset[str]:
        """What functions call axes."""
        meshes = self.program.stages.values()
        return frozenset(self.axis_variable(mesh, name) for mesh in meshes for name in mesh.names)

    @cached_property
    def hints(self) -> Mapping[str, str]:
        """A short name per tensor."""
        return name_tensors(self.graph, self.plan.placed.axes)

    @cached_property
    def cuts(self) -> Mapping[Cut, str]:
        """A name per cut."""
        return name_cuts(self.program, self.plan.placed.axes)

    @cached_property
    def bodies(self) -> dict[Part, list[Instruction]]:
        """The bodies, with every Keep right behind what it keeps and without Free."""
        return {part: _with_keeps_early(body) for part, body in self.program.bodies.items()}

    def parts(self, *phases: Phase) -> list[Part]:
        """The bodies of these phases, by stage."""
        return sorted((part for part in self.bodies if part.phase in phases), key=lambda part: part.stage)

    @cached_property
    def written_in(self) -> dict[str, Part]:
        """Value -> the body that writes it."""
        return {name: part for part, body in self.bodies.items() for i in body for name in writes_of(i)}

    def is_written_in(self, value: str, *phases: Phase) -> bool:
        """Whether a body of these phases writes a value."""
        return value in self.written_in and self.written_in[value].phase in phases

    @cached_property
    def readers(self) -> dict[str, list[tuple[Part, Instruction]]]:
        """Value -> who reads it, in order."""
        table: dict[str, list[tuple[Part, Instruction]]] = {}
        for part, body in self.bodies.items():
            for instruction in body:
                for name in dict.fromkeys(reads_of(instruction)):
                    table.setdefault(name, []).append((part, instruction))
        return table

    @cached_property
    def keeps(self) -> dict[str, Keep]:
        """Value -> the instruction that keeps it for the update."""
        return {i.read: i for body in self.bodies.values() for i in body if isinstance(i, Keep)}

    @cached_property
    def summed(self) -> dict[str, Collective]:
        """Kept value -> its sum over devices, where that sets out as soon as the last micro-batch has added to it."""
        update = self.bodies[Part(Phase.UPDATE)]
        return {i.read: i for i in update if isinstance(i, Collective) and i.is_started}

    @cached_property
    def kept(self) -> dict[str, tuple[str, str]]:
        """Kept value -> the dict that holds it (``grads`` or ``kept``) and its key."""
        table: dict[str, tuple[str, str]] = {}
        taken: set[tuple[str, str]] = set()
        for keep in self.keeps.values():
            tensor = self.value(keep.read).tensor
            name = "grads" if self.is_written_in(keep.read, Phase.BACKWARD, Phase.WEIGHT) else "kept"
            key = self.gradient_keys.get(tensor) or self.hints[tensor]
            number, unique = 1, key
            while (name, unique) in taken:
                number += 1
                unique = f"{key}_{number}"
            taken.add((name, unique))
            table[keep.write] = name, unique
        return table

    @cached_property
    def gradient_keys(self) -> dict[str, str]:
        """Gradient tensor -> the parameter's name, with the operator's behind it where it is but a part."""
        keys = {gradient: parameter for parameter, gradient in self.graph.gradients.items()}
        parameters = {tensor.name for tensor in self.graph.of_role(Role.PARAMETER)}
        forward: dict[int, list[Operator]] = {}
        for operator in self.graph.operators:
            if operator.phase is Phase.FORWARD:
                forward.setdefault(operator.origin, []).append(operator)
        for operator in self.graph.operators:
            if operator.phase is not Phase.BACKWARD or operator.origin < 0 or operator.is_again:
                continue
            read = {
                name
                for origin in forward.get(operator.origin, ())
                for name in origin.reads
                if name in parameters
            }
            for name in operator.writes:
                if name not in keys and len(read) == 1:
                    (parameter,) = read
                    if self.graph.tensors[name].shape == self.graph.tensors[parameter].shape:
                        keys[name] = f"{parameter}/{plain_name(operator.kind)}"
        return keys

    def value(self, name: str) -> LocalValue:
        """What the program knows of a value."""
        return self.program.values[name]

    def is_again(self, instruction: Instruction) -> bool:
        """Whether an instruction repeats one of the forward, in the backward."""
        if isinstance(instruction, Compute) and instruction.kind == "float8_columns":
            return False  # of what was computed again; it is the backward that wants it
        return any(
            self.value(name).tensor.endswith(AGAIN)
            for name in writes_of(instruction)
            if name in self.program.values
        )

    def hint(self, name: str) -> str:
        """A short name for a value."""
        if name not in self.program.values:
            return identifier(name)
        hint = self.hints[self.value(name).tensor]
        if self.value(name).dtype == DTYPE_OF_CASTS:
            return f"{hint}_float8"
        return f"{hint}_host" if self.value(name).host else hint

    @cached_property
    def large_bytes(self) -> int:
        """From how many bytes values are forgotten as soon as nobody needs them any more."""
        written = (name for name, part in self.written_in.items() if part.phase.is_repeated)
        return max(map(self.num_bytes, written), default=0) // _FORGOTTEN_FROM

    def num_bytes(self, name: str) -> int:
        """Largest size of a value on a device, in the example."""
        return self.value(name).num_bytes

    def is_under_way(self, name: str, but: Instruction | None = None) -> bool:
        """Whether a value is sent, stowed or summed while the program goes on, and so must not be overwritten."""
        return any(
            isinstance(reader, Send | ToHost) or (isinstance(reader, Collective) and reader.is_started)
            for _, reader in self.readers.get(name, ())
            if reader is not but
        )


def _with_keeps_early(body: tuple[Instruction, ...]) -> list[Instruction]:
    keeps = {i.read: i for i in body if isinstance(i, Keep)}
    result: list[Instruction] = []
    for instruction in body:
        if isinstance(instruction, (Keep, Free)):
            continue
        result.append(instruction)
        result += [keeps[name] for name in writes_of(instruction) if name in keeps]
    return result
