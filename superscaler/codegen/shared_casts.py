"""Shared casts: what several products in float8 read alike is cast once, as a statement of its own.

Within an operator a cast is scratch memory. A program that is printed names those that would be made twice: of the
input of q, k and v, say, by rows in the forward and by columns for the gradients of their weights. Products share
within the module that has their layers, so that no cast lives longer than that.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from superscaler.codegen.program import Compute, Instruction, LocalValue, Part, Program
from superscaler.ir.float8 import CASTS, DTYPE_OF_CASTS, owner_of
from superscaler.ir.graph import Ref


class _Cast(NamedTuple):
    value: str
    kind: str
    owner: str
    """The module that has the layers which read it."""
    part: Part

    @property
    def write(self) -> str:
        """The name of the result."""
        return f"{self.value}/{self.kind} for {self.owner} in {self.part}"


def share_casts(program: Program) -> Program:
    """The program with an instruction per cast that several products of a body share."""
    values, bodies = dict(program.values), dict(program.bodies)
    for part, body in program.bodies.items():
        counts = Counter(cast for one in body for cast in set(_casts(program, part, one)))
        shared = {cast for cast, count in counts.items() if count > 1}
        if shared:
            values |= {cast.write: _value(program, cast) for cast in shared}
            bodies[part] = _with_casts(program, part, body, shared)
    return replace(program, values=values, bodies=bodies)


def _casts(program: Program, part: Part, instruction: Instruction) -> Sequence[_Cast]:
    """The casts of a product's operands, in order; none of what is no product in float8."""
    if not isinstance(instruction, Compute) or instruction.kind not in CASTS:
        return ()
    owner = owner_of(program.graph.by_name[instruction.operator])
    return [
        _Cast(value, kind, owner, part)
        for value, kind in zip(instruction.reads[:2], CASTS[instruction.kind], strict=True)
    ]


def _value(program: Program, cast: _Cast) -> LocalValue:
    return replace(program.values[cast.value], name=cast.write, dtype=DTYPE_OF_CASTS)


def _with_casts(
    program: Program, part: Part, body: Sequence[Instruction], shared: set[_Cast]
) -> tuple[Instruction, ...]:
    result: list[Instruction] = []
    made: set[_Cast] = set()
    for instruction in body:
        reads = list(instruction.reads) if isinstance(instruction, Compute) else []
        for place, cast in enumerate(_casts(program, part, instruction)):
            if cast not in shared:
                continue
            if cast not in made:
                made.add(cast)
                result.append(Compute("", cast.kind, (cast.value,), (cast.write,), (Ref(0),)))
            reads[place] = cast.write
        result.append(
            replace(instruction, reads=tuple(reads)) if isinstance(instruction, Compute) else instruction
        )
    return tuple(result)
