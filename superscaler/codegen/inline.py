"""Inline: which result is written within the one call that reads it, and gets no name."""

from typing import Any

from superscaler.codegen.expressions import METHODS, Text
from superscaler.codegen.names import VIEWS
from superscaler.codegen.printed_program import PrintedProgram
from superscaler.codegen.program import Compute
from superscaler.ir.graph import Ref

_CHAIN = 80
"""Longest chain of calls on one line, in characters."""
_CHAIN_START = 50
"""Longest call that views are put behind on the same line, in characters."""
_SCALAR_READERS = {
    "aten.where.self",
    "aten.add.Tensor",
    "aten.mul.Tensor",
    "aten.sub.Tensor",
    "aten.div.Tensor",
}


def inline(printed: PrintedProgram, instruction: Compute, text: Text, following: Any) -> Text | None:
    """What a call's result is written as within the next call; None where it must have a name.

    Args:
        printed: The program both are part of.
        instruction: The call.
        text: It as it would be written by itself.
        following: The next instruction, or whatever comes next.
    """
    if not isinstance(following, Compute) or not _is_read_by_alone(printed, instruction, following):
        return None
    if _is_scalar(printed, instruction, following):
        return Text(repr(float(instruction.arguments[1])))
    longest = _CHAIN if instruction.kind in VIEWS else _CHAIN_START
    return text if _is_chain(instruction, following) and len(text.atom) < longest else None


def _is_read_by_alone(printed: PrintedProgram, instruction: Compute, following: Compute) -> bool:
    if len(instruction.writes) != 1:
        return False
    (value,) = instruction.writes
    readers = printed.readers.get(value, [])
    return len(readers) == 1 and readers[0][1] is following and following.reads.count(value) == 1


def _is_chain(instruction: Compute, following: Compute) -> bool:
    """Whether the next call is a method of the result."""
    first = following.arguments[0] if following.arguments else None
    reads_it_first = isinstance(first, Ref) and following.reads[first.index] == instruction.writes[0]
    return following.kind in METHODS and reads_it_first


def _is_scalar(printed: PrintedProgram, instruction: Compute, following: Compute) -> bool:
    """Whether the result is a constant that a number can stand for: the other operands settle shape and type."""
    if instruction.kind != "full" or instruction.arguments[0] or following.kind not in _SCALAR_READERS:
        return False
    dtype = printed.value(following.writes[0]).dtype
    others = [name for name in following.reads if name != instruction.writes[0]]
    return "float" in dtype and any(
        printed.value(name).dtype == dtype and printed.value(name).shape for name in others
    )
