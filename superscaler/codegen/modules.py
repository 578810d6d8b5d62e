"""Modules: to which of the user's modules each instruction of a body belongs."""

from collections.abc import Sequence

from superscaler.codegen.program import (
    Await,
    Collective,
    Compute,
    Exchange,
    FromHost,
    Instruction,
    Keep,
    Mask,
    Program,
    Receive,
    Slice,
    ToHost,
    reads_of,
)


def modules_of(program: Program, body: Sequence[Instruction]) -> list[str]:
    """The module each instruction belongs to; empty where it belongs to none, as messages do.

    What ends a layer (a wait, a move to host memory) belongs to what came before it; a move to the device and a cast
    belong to what comes next.
    """
    modules: list[str] = []
    graph = program.graph
    arrived: set[str] = set()
    for instruction in body:
        module = ""
        if isinstance(instruction, Receive | Exchange):
            arrived.add(instruction.write)
        if isinstance(instruction, Compute) and instruction.operator:
            module = graph.by_name[instruction.operator].module
        elif isinstance(instruction, Keep) and instruction.read in arrived:
            pass  # it is printed with the message, in one statement
        elif isinstance(instruction, (Compute, Collective, Slice, Mask, Keep)):
            tensor = program.values[reads_of(instruction)[0]].tensor
            writer = graph.writer.get(tensor)
            module = writer.module if writer else tensor.rpartition(".")[0]
        elif isinstance(instruction, ToHost) or (isinstance(instruction, Await) and instruction.leaving):
            module = modules[-1] if modules else ""
        modules.append(module)
    for place in reversed(range(len(body) - 1)):
        if isinstance(body[place], FromHost) or _is_cast(body[place]):
            modules[place] = modules[place + 1]
    return modules


def _is_cast(instruction: Instruction) -> bool:
    return isinstance(instruction, Compute) and instruction.kind in ("float8_rows", "float8_columns")
