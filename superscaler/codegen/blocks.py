"""Blocks: runs of instructions that repeat, found by structure, so that each is printed as one function.

The numbers in module paths (``h.3.attn``) propose where a run may begin and end; two runs are the same block only
if they have the same calls, arguments, local shapes and wiring, and parameters that differ by that prefix alone.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from superscaler.codegen.modules import modules_of
from superscaler.codegen.names import VIEWS
from superscaler.codegen.printed_program import PrintedProgram
from superscaler.codegen.program import (
    Await,
    Collective,
    Compute,
    FromHost,
    Instruction,
    Keep,
    Mask,
    Part,
    Slice,
    ToHost,
    reads_of,
    writes_of,
)
from superscaler.ir.graph import Phase

SMALLEST = 4
"""Instructions, views and moves to and from host memory not counted, from which a repeated run is worth a function."""
COUNTED = {"key"}
"""Keywords whose integers may differ from call to call by a constant."""


@dataclass
class Call:
    """One run of instructions that is a call of a block."""

    stage: int
    prefix: str
    """What its parameters' names begin with: ``h.3``."""
    instructions: tuple[Instruction, ...]
    inside: tuple[str, ...]
    """Values it makes, in order."""
    outside: tuple[str, ...]
    """Values of other instructions that it reads, in order of first use; stored and fed ones are not among them."""
    numbers: tuple[int, ...]
    """Its own integers among the arguments, such as the keys of dropouts."""

    @property
    def key(self) -> tuple[int, str]:
        """Tells calls of one block apart."""
        return self.stage, self.prefix

    def find(self, value: str) -> tuple[str, int] | None:
        """Where a value is: made inside or read from outside, and its number there."""
        if value in self._places:
            return self._places[value]
        return None

    def at(self, place: tuple[str, int]) -> str:
        """The inverse of `find`."""
        return (self.inside if place[0] == "inside" else self.outside)[place[1]]

    def __post_init__(self) -> None:
        self._places = {name: ("outside", i) for i, name in enumerate(self.outside)}
        self._places.update({name: ("inside", i) for i, name in enumerate(self.inside)})


@dataclass
class Block:
    """A function that several calls share."""

    phase: Phase
    calls: list[Call] = field(default_factory=list)
    name: str = ""

    @property
    def pattern(self) -> str:
        """Where it is found: ``h.*``."""
        return re.sub(r"\d+$", "*", self.calls[0].prefix)


@dataclass(frozen=True)
class Repeat:
    """A call of a block, as an item of a body."""

    block: Block
    call: Call


Item = Instruction | Repeat


def find_blocks(printed: PrintedProgram, phase: Phase) -> tuple[dict[Part, list[Item]], list[Block]]:
    """The bodies of a phase with their repeated runs replaced by calls, and the blocks that are called."""
    parts = printed.parts(phase)
    modules = {part: modules_of(printed.program, printed.bodies[part]) for part in parts}
    pending = [(part, 0, len(printed.bodies[part]), 0) for part in parts]
    chosen: dict[tuple[Part, int], tuple[int, Call, tuple]] = {}
    while pending:
        runs, deeper = [], []
        for part, start, stop, depth in pending:
            for first, last, prefix in _runs(modules[part], start, stop, depth):
                call, key = _canonical(printed, part, prefix, printed.bodies[part][first:last])
                runs.append((part, first, last, depth, call, key))
        counts: dict[tuple, int] = {}
        for *_, key in runs:
            counts[key] = counts.get(key, 0) + 1
        for part, first, last, depth, call, key in runs:
            if counts[key] > 1 and _weight(call.instructions) >= SMALLEST:
                chosen[part, first] = last, call, key
            else:
                deeper.append((part, first, last, depth + 1))
        pending = deeper
    blocks: dict[tuple, Block] = {}
    items: dict[Part, list[Item]] = {}
    for part in parts:
        items[part] = []
        position, body = 0, printed.bodies[part]
        while position < len(body):
            if (part, position) not in chosen:
                items[part].append(body[position])
                position += 1
                continue
            position, call, key = chosen[part, position]
            block = blocks.setdefault(key, Block(phase))
            block.calls.append(call)
            items[part].append(Repeat(block, call))
    return items, list(blocks.values())


def _prefix(module: str, depth: int) -> str:
    """The module's path up to its number number `depth`.

    >>> _prefix("stages.0.blocks.2.attn", 1), _prefix("ln_f", 0)
    ('stages.0.blocks.2', '')
    """
    parts = module.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdecimal()]
    return ".".join(parts[: numbers[depth] + 1]) if depth < len(numbers) else ""


def _runs(modules: Sequence[str], start: int, stop: int, depth: int) -> Iterable[tuple[int, int, str]]:
    first, current = start, ""
    for position in range(start, stop + 1):
        prefix = _prefix(modules[position], depth) if position < stop else ""
        if prefix != current:
            if current:
                yield first, position, current
            first, current = position, prefix


def _weight(instructions: Iterable[Instruction]) -> int:
    return sum(
        not (isinstance(i, Keep | ToHost | FromHost) or (isinstance(i, Compute) and i.kind in VIEWS))
        for i in instructions
    )


def _canonical(
    printed: PrintedProgram, part: Part, prefix: str, instructions: Sequence[Instruction]
) -> tuple[Call, tuple]:
    """The run as a call, and a key that is equal for calls of one block."""
    inside: dict[str, int] = {}
    outside: dict[str, int] = {}
    numbers: list[int] = []
    own = printed.program
    direct = {*own.stored, *own.fed}

    def name(value: str) -> tuple:
        if value in inside:
            return ("inside", inside[value])
        if value not in own.values or value in direct:
            return ("direct", _within(value, prefix))
        outside.setdefault(value, len(outside))
        return ("outside", outside[value])

    def constant(keyword: tuple[str, object]) -> object:
        key, value = keyword
        if key in COUNTED and isinstance(value, int):
            numbers.append(value)
            return key, "number", value - numbers[0]
        return key, repr(value)

    mesh = own.stages[part.stage]
    key: list[object] = [(mesh.axes, *(printed.axis_variable(mesh, name) for name in mesh.names))]
    for instruction in instructions:
        reads = tuple(map(name, reads_of(instruction)))
        settings = _settings(printed, instruction, prefix, constant)
        shapes = []
        if not isinstance(instruction, Keep):
            for value in writes_of(instruction):
                inside[value] = len(inside)
                shapes.append((printed.value(value).shape, printed.value(value).dtype))
        key.append((type(instruction).__name__, reads, settings, tuple(shapes)))
    for value in outside:
        key.append((printed.value(value).shape, printed.value(value).dtype))
    return Call(
        part.stage, prefix, tuple(instructions), tuple(inside), tuple(outside), tuple(numbers)
    ), tuple(key)


def _settings(
    printed: PrintedProgram,
    instruction: Instruction,
    prefix: str,
    constant: Callable[[tuple[str, object]], object],
) -> tuple:
    """What an instruction is beside its operands, alike for those of one block.

    Args:
        printed: The program it is part of.
        instruction: The instruction.
        prefix: Of the names of the run's parameters.
        constant: A keyword, with what may differ from call to call left out.
    """
    match instruction:
        case Compute(kind=kind, arguments=arguments, keywords=keywords):
            return kind, repr(arguments), tuple(map(constant, keywords))
        case Keep(write=write, add=add):
            place, kept = printed.kept[write]
            total = printed.summed.get(write)
            sum_over_devices = (total.step.kind, total.step.axis, total.dim) if total else ()
            return place, _within(kept, prefix), add, *sum_over_devices
        case Collective(step=step, dim=dim, from_dim=from_dim, is_started=is_started, group=group):
            return step.kind, step.axis, dim, from_dim, step.before.reducer, is_started, group >= 0
        case Await(leaving=leaving):
            return (leaving,)
        case Slice(step=step, dim=dim, start=start, length=length):
            return step.axis, dim, start, length
        case Mask(step=step):
            return (step.axis,)
        case FromHost(group=group):
            return (group >= 0,)
        case ToHost():
            return ()
        case _:  # alike to none
            return (id(instruction),)


def _within(name: str, prefix: str) -> tuple[bool, str]:
    """Whether a name lies under a module, and the rest of it."""
    for separator in "./|":
        if name.startswith(prefix + separator):
            return True, name[len(prefix) :]
    return False, name
