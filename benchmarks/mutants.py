"""Mutants: programs with one communication instruction deleted, misdirected or moved."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from superscaler.codegen.held import Held, after_collective
from superscaler.codegen.instruction_text import describe
from superscaler.codegen.program import (
    Await,
    Collective,
    Compute,
    Exchange,
    FromHost,
    Instruction,
    Keep,
    LocalValue,
    Mask,
    Offset,
    Part,
    Program,
    Receive,
    Send,
    Slice,
    Store,
    ToHost,
    reads_of,
    writes_of,
)
from superscaler.ir.axes import Axes
from superscaler.ir.graph import Phase
from superscaler.planner.steps import plain

Moving = Collective | Await | Slice | Mask | Send | Receive | Exchange | Keep | Store | ToHost | FromHost


@dataclass(frozen=True, slots=True)
class Mutant:
    """Programs that differ from the plan's in one place."""

    change: str
    """delete, misdirect or reorder."""
    what: str
    programs: tuple[Program, ...]


def mutants(programs: Sequence[Program], axes: Axes) -> Iterator[Mutant]:
    """Every mutant of every communication instruction, and of the local halves of moves."""
    stages = 1 + max(number for program in programs for number in program.stages)
    for program in programs:
        for part, body in program.bodies.items():
            for index, instruction in enumerate(body):
                if isinstance(instruction, Moving):
                    for change, mutated in _of(program, part, index, instruction, axes, stages):
                        others = tuple(mutated if p is program else p for p in programs)
                        what = f"{change} in {program.title}, {part}: {describe(instruction)}"
                        yield Mutant(change.split()[0], what, others)


def _of(
    program: Program, part: Part, index: int, instruction: Moving, axes: Axes, stages: int
) -> Iterator[tuple[str, Program]]:
    yield "delete", _deleted(program, part, index, instruction)
    for other in _misdirected(program, part, index, instruction, stages):
        yield "misdirect", _with(program, part, index, other, axes)
    yield from _reordered(program, part, index, instruction)


# delete


def _deleted(program: Program, part: Part, index: int, instruction: Moving) -> Program:
    """Without the instruction: readers read what it read; of a message or a sum, what resembles it most."""
    body = program.bodies[part]
    result = _with_body(program, part, body[:index] + body[index + 1 :])
    if isinstance(instruction, Store | Send | Await):
        return result
    (write,) = writes_of(instruction) or ("",)
    stand_in = reads_of(instruction)[0] if reads_of(instruction) else _resembling(program, part, index, write)
    if not write or not stand_in:
        return result
    bodies = {
        name: tuple(_renamed(item, write, stand_in) for item in items)
        for name, items in result.bodies.items()
    }
    outputs = {name: stand_in if value == write else value for name, value in program.outputs.items()}
    return replace(result, bodies=bodies, outputs=outputs)


def _renamed(instruction: Instruction, old: str, new: str) -> Instruction:
    if isinstance(instruction, Compute) and old in instruction.reads:
        return replace(instruction, reads=tuple(new if name == old else name for name in instruction.reads))
    if getattr(instruction, "read", None) == old:
        return replace(instruction, read=new)
    return instruction


# misdirect


def _misdirected(
    program: Program, part: Part, index: int, instruction: Moving, stages: int
) -> Iterator[Instruction]:
    read = getattr(instruction, "read", "")
    stand_in = _resembling(program, part, index, read) if read else ""
    if stand_in:
        yield replace(instruction, read=stand_in)  # type: ignore[call-arg]
    if isinstance(instruction, Collective | Slice | Mask):
        for axis, size in program.mesh_of(instruction).axes:
            if axis != instruction.step.axis and size > 1:
                other = replace(instruction, step=replace(instruction.step, axis=axis))
                if isinstance(other, Slice) and other.start.axes:
                    swapped = tuple(
                        axis if name == instruction.step.axis else name for name in other.start.axes
                    )
                    other = replace(other, start=replace(other.start, axes=swapped))
                yield other
    if isinstance(instruction, Collective | Slice) and instruction.dim >= 0:
        for dim in range(len(program.values[instruction.read].shape)):
            if dim != instruction.dim:
                yield replace(instruction, dim=dim)
    if isinstance(instruction, Collective) and instruction.group >= 0:
        yield replace(instruction, group=instruction.group + 1)
    if isinstance(instruction, Await):
        yield replace(instruction, leaving=instruction.leaving + 1)
    if isinstance(instruction, Slice):
        yield replace(instruction, start=Offset((), (), 1))
    if isinstance(instruction, Send | Receive):
        own = next(n for n, mesh in program.stages.items() if mesh == program.mesh_of(instruction))
        for stage in range(stages):
            if stage not in (instruction.stage, own):
                yield replace(instruction, stage=stage)
    if isinstance(instruction, Keep):
        yield replace(instruction, add=not instruction.add)
    if isinstance(instruction, Store):
        shape = program.values[instruction.write].shape
        homes = [n for n in program.stored if n != instruction.write and program.values[n].shape == shape]
        for name in homes[:1]:
            yield replace(instruction, write=name)


def _resembling(program: Program, part: Part, index: int, name: str) -> str:
    """The last value before an instruction, of another name, with the same local shape, dtype and place."""
    wanted = program.values.get(name)
    if wanted is None:
        return ""
    candidates = [*program.stored, *program.fed]
    order = (Phase.PREPARE, Phase.FORWARD, Phase.BACKWARD, Phase.WEIGHT)
    parts = [part]
    if part.phase.is_repeated:
        parts = [Part(phase, part.stage) for phase in order[1 : order.index(part.phase) + 1]]
    for earlier in (Part(Phase.PREPARE), *parts):
        body = program.bodies.get(earlier, ())
        for instruction in body[:index] if earlier == part else body:
            if not isinstance(instruction, Keep | Store):
                candidates += writes_of(instruction)
    if part.phase is Phase.UPDATE:
        candidates += [i.write for _, i in program.instructions() if isinstance(i, Keep)]

    def resembles(value: LocalValue) -> bool:
        alike = (value.shape, value.dtype, value.host) == (wanted.shape, wanted.dtype, wanted.host)
        return alike and value.name != name

    return next((other for other in reversed(candidates) if resembles(program.values[other])), "")


# reorder


def _reordered(
    program: Program, part: Part, index: int, instruction: Moving
) -> Iterator[tuple[str, Program]]:
    body = program.bodies[part]
    later = [i for i in range(index + 1, len(body)) if isinstance(body[i], Moving)]
    if later:
        yield "reorder (swap with the next)", _with_body(program, part, _swapped(body, index, later[0]))
    if isinstance(instruction, Send):
        sends = [i for i in later if isinstance(body[i], Send)]
        if sends and sends[0] != later[0]:
            yield "reorder (swap sends)", _with_body(program, part, _swapped(body, index, sends[0]))
    written = set(writes_of(instruction))
    reader = next((i for i in range(index + 1, len(body)) if written.intersection(reads_of(body[i]))), None)
    if reader is not None:
        moved = body[:index] + body[index + 1 : reader + 1] + (instruction,) + body[reader + 1 :]
        yield "reorder (behind its first reader)", _with_body(program, part, moved)


def _swapped(body: Sequence[Instruction], one: int, other: int) -> tuple[Instruction, ...]:
    result = list(body)
    result[one], result[other] = result[other], result[one]
    return tuple(result)


# programs


def _with(program: Program, part: Part, index: int, instruction: Instruction, axes: Axes) -> Program:
    """With another instruction in place, and what it writes declared as what it would be, where it may be."""
    body = program.bodies[part]
    result = _with_body(program, part, body[:index] + (instruction,) + body[index + 1 :])
    if not isinstance(instruction, Collective):
        return result
    before = program.values[instruction.read]
    after = after_collective(axes, Held(before.tensor, plain(before.layout), before.fine), instruction)
    if after is None:
        return result
    declared = replace(
        program.values[instruction.write], tensor=after.tensor, layout=after.layout, shape=after.shape(axes)
    )
    values: Mapping[str, LocalValue] = {**program.values, instruction.write: declared}
    return replace(result, values=values)


def _with_body(program: Program, part: Part, body: Sequence[Instruction]) -> Program:
    return replace(program, bodies={**program.bodies, part: tuple(body)})
