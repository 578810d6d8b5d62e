"""Ownership: whose memory the values of a function lie in, as it is written instruction by instruction.

What is kept is overwritten later, and what is read later must not be: so a collective in place needs memory that
belongs to what it reads alone, and so does a sum that is written over one of its operands.
"""

from superscaler.codegen.lifetimes import Lifetimes
from superscaler.codegen.names import VIEWS
from superscaler.codegen.printed_program import PrintedProgram
from superscaler.codegen.program import Compute, Instruction
from superscaler.ir.graph import Ref
from superscaler.ir.kinds import VIEWS as MEMORY_VIEWS

_OWNED = {
    "linear", "linear_input_gradient", "linear_float8", "linear_float8_input_gradient", "aten.mm", "aten.bmm",
    "aten.addmm", "aten.add.Tensor", "aten.native_layer_norm_backward",
}  # fmt: skip
"""Kinds whose results are new memory, of which none shares any with another."""


def is_view(instruction: Compute) -> bool:
    """Whether a call's result may share memory with what it reads first."""
    return instruction.kind in VIEWS or instruction.kind in MEMORY_VIEWS


class Ownership:
    """Which values of a function share memory, and what of it is the function's own.

    Args:
        printed: The program the function is part of.
        lifetimes: Of the function's values.
    """

    def __init__(self, printed: PrintedProgram, lifetimes: Lifetimes) -> None:
        self.printed, self.lifetimes = printed, lifetimes
        self._root: dict[str, str] = {}
        """View -> the value whose memory it is; through all views."""
        self._new: set[str] = set()
        """Values whose memory the function made."""
        self._unshared: set[str] = set()
        """Of those, the ones that share it with no other result of the same call."""
        self._kept: set[str] = set()
        """Roots of which something is kept."""

    def root(self, value: str) -> str:
        """The value whose memory another one is a view of; its own where it is no view."""
        return self._root.get(value, value)

    def share(self, write: str, read: str) -> None:
        """Note that a new value lies in the memory of another."""
        self._root[write] = self.root(read)

    def make(self, *writes: str) -> None:
        """Note new values in new memory."""
        self._new.update(writes)

    def compute(self, instruction: Compute) -> None:
        """Note what a call makes."""
        if instruction.kind in _OWNED:
            self._unshared.update(instruction.writes)
        if is_view(instruction) and instruction.reads:
            self.share(instruction.writes[0], instruction.reads[0])
        else:
            self.make(*instruction.writes)

    def keep(self, value: str) -> None:
        """Note that the function keeps a value."""
        self._kept.add(self.root(value))

    def is_free(self, value: str) -> bool:
        """Whether the memory of a value is the function's own, and nothing in it is kept."""
        return self.root(value) in self._new - self._kept

    def may_overwrite(self, value: str, by: Instruction | None = None) -> bool:
        """Whether the memory of a value belongs to it alone from here on, and to what `by` makes of it."""
        root = self.root(value)
        if root not in self._new:
            return False
        sharing = [root, *(other for other, its in self._root.items() if its == root)]
        for other in sharing:
            kept = other in self.printed.keeps or self.printed.is_under_way(other, by)
            if kept or self.lifetimes.is_read_later(other):
                return False
        return not any(
            isinstance(i, Compute) and i.kind == "aten.expand"
            for other in sharing
            for _, i in self.printed.readers.get(other, ())
        )

    def overwritten_operand(self, instruction: Compute) -> int | None:
        """The number of the operand a sum may be written over, if there is one: no new memory to fill."""
        if (
            instruction.kind != "aten.add.Tensor"
            or instruction.arguments != (Ref(0), Ref(1))
            or instruction.keywords
        ):
            return None
        candidates = (
            number
            for number, (mine, other) in enumerate((instruction.reads, instruction.reads[::-1]))
            if self._fits(instruction.writes[0], mine, other)
            and self.root(mine) in self._unshared
            and self.root(mine) != self.root(other)
            and self.may_overwrite(mine)
        )
        return next(candidates, None)

    def _fits(self, write: str, mine: str, other: str) -> bool:
        """Whether a sum is of the shape and type of one of its operands."""
        result, value = self.printed.value(write), self.printed.value(mine)
        dtypes = {result.dtype, value.dtype, self.printed.value(other).dtype}
        return value.shape == result.shape and len(dtypes) == 1
