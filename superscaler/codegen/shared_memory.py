"""Shared memory: which values are views of others."""

from superscaler.codegen.program import Compute, FromHost, Program, Slice, ToHost
from superscaler.ir.kinds import VIEWS


def add_views(program: Program, root: dict[str, str]) -> None:
    """Add to a table of values and those whose memory they share all that are views, each with what it views."""
    strided: set[str] = set()
    for _, instruction in program.instructions():
        if isinstance(instruction, Slice):
            root[instruction.write] = root.get(instruction.read, instruction.read)
            strided.add(instruction.write)
        elif isinstance(instruction, ToHost | FromHost) and instruction.read in strided:
            strided.add(instruction.write)  # a copy has the strides of what it is of
        elif isinstance(instruction, Compute) and instruction.reads and instruction.writes[0] not in root:
            read, write = instruction.reads[0], instruction.writes[0]
            is_same = program.values[read].shape == program.values[write].shape
            stays = instruction.kind == "reshape" or (instruction.kind == "aten.expand" and is_same)
            if instruction.kind in VIEWS or (stays and read not in strided):
                root[write] = root.get(read, read)
                if read in strided or not stays:
                    strided.add(write)
