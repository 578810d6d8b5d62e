"""Whether what goes on while a body computes disturbs nothing: sums under way, gathers and fetches ahead of their use.

Each check returns what is wrong, or nothing; the row's proof knows the place and raises.
"""

from dataclasses import dataclass, field

from superscaler.codegen.program import Collective, FromHost, Part, Program
from superscaler.planner.steps import StepKind


@dataclass
class BodyOverlap:
    """What goes on in one body of a program, as far as it is executed."""

    program: Program
    part: Part
    under_way: list[str] = field(default_factory=list)
    """Results of reductions that were started and not waited for, oldest first."""
    gathered: Collective | None = None
    """The last gather of a group."""
    fetched: int = -1
    """The last group fetched from host memory."""

    def wait(self, leaving: int) -> None:
        """An Await: all but the last few reductions have arrived."""
        del self.under_way[: max(0, len(self.under_way) - leaving)]

    def collective(self, instruction: Collective, *, is_complete: bool) -> str:
        """Note a collective that goes on meanwhile; it must be the same for all who take part.

        Args:
            instruction: Any collective; one that ends before the next instruction is no matter of ours.
            is_complete: Whether what it reads is kept for it alone, and nothing adds to it any more.
        """
        if not instruction.is_started and instruction.group < 0:
            return ""
        group = instruction.step.after.mesh.group(instruction.step.axis, self.program.devices[0])
        may_set_out = self.part.phase.is_repeated or (instruction.is_started and is_complete)
        if not may_set_out or not set(group) <= set(self.program.devices):
            return "goes on meanwhile, outside of a micro-batch or with devices of other programs"
        return self._start(instruction) if instruction.is_started else self._gather(instruction)

    def _start(self, instruction: Collective) -> str:
        if instruction.step.kind not in (StepKind.ALL_REDUCE, StepKind.REDUCE_SCATTER):
            return f"starts a {instruction.step.kind}, which is no reduction"
        self.under_way.append(instruction.write)
        return ""

    def _gather(self, instruction: Collective) -> str:
        # stored pieces change in the update alone, so a gather may run any time before
        if instruction.step.kind is not StepKind.ALL_GATHER or instruction.read not in self.program.stored:
            return "gathers ahead what is not stored"
        step, last = instruction.step, self.gathered
        fault = _order_fault("gathers", instruction.group, -1 if last is None else last.group)
        if fault:
            return fault
        if last is not None and (last.step.axis, last.step.after.mesh) != (step.axis, step.after.mesh):
            return f"gathers over {step.axis!r} in one row with {last.step.axis!r}"
        self.gathered = instruction
        return ""

    def fetch(self, instruction: FromHost) -> str:
        """Note a fetch: ahead of its use, it must be there all the while and come in the order of its groups."""
        if instruction.group < 0:
            return ""
        if not self.part.phase.is_repeated or instruction.read not in self.program.stored:
            return "fetches ahead what is not stored, or what an update may change meanwhile"
        fault = _order_fault("fetches", instruction.group, self.fetched)
        if not fault:
            self.fetched = instruction.group
        return fault


def _order_fault(verb: str, group: int, last: int) -> str:
    """Groups are numbered from 0, and come one after another."""
    return "" if group in (max(last, 0), last + 1) else f"{verb} group {group} after group {last}"
