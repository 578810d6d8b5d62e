"""Stage: one program made ready for printing: names, who reads what, and under which keys values are kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from superscaler.codegen.names import identifier, name_tensors
from superscaler.codegen.program import (
    Free,
    Instruction,
    Keep,
    LocalValue,
    Program,
    Send,
    reads_of,
    writes_of,
)
from superscaler.codegen.sizes import Cut, name_cuts
from superscaler.ir.graph import AGAIN, Graph, Operator, Phase
from superscaler.ir.import_fx import plain_name
from superscaler.ir.tensor import DTYPE_BYTES, Role
from superscaler.planner.plan import Plan


@dataclass(frozen=True)
class Stage:
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
        return self.program.mesh.micro_batches

    @cached_property
    def hints(self) -> Mapping[str, str]:
        """A short name per tensor."""
        return name_tensors(self.graph, self.plan.placed.axes)

    @cached_property
    def cuts(self) -> Mapping[Cut, str]:
        """A name per cut."""
        return name_cuts(self.program, self.plan.placed.axes)

    @cached_property
    def bodies(self) -> dict[Phase, list[Instruction]]:
        """The bodies, with every Keep right behind what it keeps and without Free."""
        return {phase: _with_keeps_early(body) for phase, body in self.program.bodies.items()}

    @cached_property
    def written_in(self) -> dict[str, Phase]:
        """Value -> the phase that writes it."""
        return {name: phase for phase, body in self.bodies.items() for i in body for name in writes_of(i)}

    @cached_property
    def readers(self) -> dict[str, list[tuple[Phase, Instruction]]]:
        """Value -> who reads it, in order."""
        table: dict[str, list[tuple[Phase, Instruction]]] = {}
        for phase, body in self.bodies.items():
            for instruction in body:
                for name in dict.fromkeys(reads_of(instruction)):
                    table.setdefault(name, []).append((phase, instruction))
        return table

    @cached_property
    def keeps(self) -> dict[str, Keep]:
        """Value -> the instruction that keeps it for the update."""
        return {i.read: i for body in self.bodies.values() for i in body if isinstance(i, Keep)}

    @cached_property
    def kept(self) -> dict[str, tuple[str, str]]:
        """Kept value -> the dict that holds it (``grads`` or ``kept``) and its key."""
        table: dict[str, tuple[str, str]] = {}
        taken: set[tuple[str, str]] = set()
        for keep in self.keeps.values():
            tensor = self.value(keep.read).tensor
            name = "grads" if self.written_in[keep.read] is Phase.BACKWARD else "kept"
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
        return any(
            self.value(name).tensor.endswith(AGAIN)
            for name in writes_of(instruction)
            if name in self.program.values
        )

    def hint(self, name: str) -> str:
        """A short name for a value."""
        if name not in self.program.values:
            return identifier(name)
        return self.hints[self.value(name).tensor]

    def num_bytes(self, name: str) -> int:
        """Largest size of a value on a device, in the example."""
        value, count = self.value(name), 1
        for extent in value.shape:
            count *= int(extent.constant)
            for _, pieces in extent.tables:
                count *= max(pieces)
        return count * DTYPE_BYTES[value.dtype]

    def is_sent(self, name: str) -> bool:
        """Whether a value leaves for another stage, and so must not be overwritten."""
        return any(isinstance(instruction, Send) for _, instruction in self.readers.get(name, ()))


def _with_keeps_early(body: tuple[Instruction, ...]) -> list[Instruction]:
    keeps = {i.read: i for i in body if isinstance(i, Keep)}
    result: list[Instruction] = []
    for instruction in body:
        if isinstance(instruction, (Keep, Free)):
            continue
        result.append(instruction)
        result += [keeps[name] for name in writes_of(instruction) if name in keeps]
    return result
