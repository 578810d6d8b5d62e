"""Offload: what a plan keeps in host memory is fetched where an instruction reads it, and stowed where it is made.

Passes over a program: for what is updated here, for activations in `superscaler.codegen.stow`, for parameters that
layers read in `superscaler.codegen.stream`. The proof knows where every value is (`superscaler.codegen.row_proof`), so
that a fetch that is missing is found; `fold_moves` takes away, for printing alone, the moves that one call of the
runtime makes.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from superscaler.codegen.program import (
    Free,
    FromHost,
    Instruction,
    LocalValue,
    Part,
    Program,
    Store,
    ToHost,
    reads_of,
    with_reads,
)
from superscaler.codegen.stow import declare_fetched, stow_saved
from superscaler.codegen.stream import stream
from superscaler.ir.graph import Phase
from superscaler.ir.tensor import Role
from superscaler.planner.layers import layers as find_layers
from superscaler.planner.plan import Plan

Move = ToHost | FromHost


def offload(plan: Plan, programs: Iterable[Program]) -> tuple[Program, ...]:
    """Move what the plan keeps in host memory there, and to the device for as long as it is used."""
    on_host = plan.placed.on_host
    if not on_host:
        return tuple(programs)
    layers = find_layers(plan.graph, plan.placed.axes, len(plan.graph.operators)).keys()
    return tuple(
        stow_saved(_offload_stored(program, on_host, layers), on_host, layers) for program in programs
    )


def _offload_stored(program: Program, on_host: frozenset[str], layers: Collection[str]) -> Program:
    homes = {name for name in program.stored if program.values[name].tensor in on_host}
    if not homes:
        return program
    values = dict(program.values)
    values |= {name: replace(values[name], host=True) for name in homes}
    parameters = {n for n in homes if program.graph.tensors[values[n].tensor].role is Role.PARAMETER}
    program = stream(replace(program, values=values), parameters, layers)
    values = dict(program.values)
    bodies = {
        part: _with_moves(body, homes - parameters if part.phase.is_repeated else homes, values)
        for part, body in program.bodies.items()
    }
    return replace(program, values=values, bodies=bodies)


def _with_moves(
    body: Sequence[Instruction], homes: set[str], values: dict[str, LocalValue]
) -> tuple[Instruction, ...]:
    """Fetch before the first reader; stow before a Store."""
    result: list[Instruction] = []
    fetched: dict[str, str] = {}
    stowed: dict[str, str] = {}
    for instruction in body:
        if isinstance(instruction, Store) and instruction.write in homes:
            if instruction.read not in stowed:
                stowed[instruction.read] = _declare_stowed(values, instruction.read)
                result.append(ToHost(instruction.read, stowed[instruction.read]))
            result.append(with_reads(instruction, stowed))
            continue
        for name in reads_of(instruction):
            if name in homes and name not in fetched:
                fetched[name] = declare_fetched(values, name)
                result.append(FromHost(name, fetched[name]))
        result.append(with_reads(instruction, fetched))
    return tuple(result)


def _declare_stowed(values: dict[str, LocalValue], name: str) -> str:
    moved = f"{name}|host"
    values[moved] = replace(values[name], name=moved, host=True)
    return moved


def fold_moves(program: Program, in_place: Mapping[str, str]) -> Program:
    """The program without the moves around updates that overwrite their operands, which fetch and stow themselves.

    Args:
        program: With moves.
        in_place: Result of such an update -> the operand it overwrites.
    """
    body = program.bodies.get(Part(Phase.UPDATE), ())
    fetched = {i.write: i.read for i in body if isinstance(i, FromHost) and i.write in in_place.values()}
    stowed = {i.write: i.read for i in body if isinstance(i, ToHost) and i.read in in_place}
    folded = tuple(
        with_reads(instruction, fetched | stowed)
        for instruction in body
        if not (isinstance(instruction, FromHost | ToHost) and instruction.write in fetched | stowed)
    )
    return replace(program, bodies={**program.bodies, Part(Phase.UPDATE): folded}) if fetched else program


def moved_together(body: Sequence[Instruction], kind: type[ToHost] | type[FromHost]) -> list[list[Move]]:
    """The moves of a kind that follow each other without another instruction between; one call makes them.

    What is fetched ahead of its use is none of them.
    """
    told = (instruction for instruction in body if not isinstance(instruction, Free))
    runs = groupby(told, lambda i: isinstance(i, kind) and not (isinstance(i, FromHost) and i.group >= 0))
    return [[i for i in run if isinstance(i, kind)] for is_move, run in runs if is_move]


def overwritten_in_fetched(body: Sequence[Instruction]) -> dict[str, str]:
    """What is stored -> the fetched copy of its home: an update of a value in host memory overwrites the copy."""
    fetched = {i.read: i.write for i in body if isinstance(i, FromHost)}
    homes = {i.read: i.write for i in body if isinstance(i, Store)}
    return {
        i.read: fetched[homes[i.write]] for i in body if isinstance(i, ToHost) and homes[i.write] in fetched
    }
