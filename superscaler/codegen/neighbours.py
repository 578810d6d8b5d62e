"""Neighbours: the other rows as one row's proof meets them, and each time it does, in order."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from superscaler.codegen.program import Collective, Part, Program
from superscaler.ir.mesh import Mesh
from superscaler.planner.progress import Message


@dataclass
class Neighbours:
    """The rows around one row."""

    program: Program
    """Of the row at hand."""
    programs: Sequence[Program]
    """Of all rows."""
    stages: Sequence[Mesh]
    """Of the whole plan."""
    messages: dict[Part, list[Message]] = field(default_factory=dict)
    """Per body the points at which other rows are met, in order: what the schedule is proved on."""
    _opposites: dict[tuple[Mesh, Mesh], tuple[tuple[int, ...], tuple[int, ...]]] = field(
        default_factory=dict, init=False
    )

    def rows_of(self, devices: Sequence[int]) -> tuple[int, ...]:
        """The rows with some of these devices, the row at hand too."""
        return tuple(p.row for p in self.programs if not set(devices).isdisjoint(p.devices))

    def opposite(self, mesh: Mesh, other: Mesh) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The devices at the places of one's own in another mesh, and their rows."""
        if (mesh, other) not in self._opposites:
            own = set(self.program.devices)
            devices = tuple(
                there for here, there in zip(mesh.devices, other.devices, strict=True) if here in own
            )
            self._opposites[mesh, other] = devices, self.rows_of(devices)
        return self._opposites[mesh, other]

    def stage_of(self, mesh: Mesh, part: Part) -> int | None:
        """The number of the row's stage that has this mesh and may execute this body, if there is one."""
        here = (number for number, own in self.program.stages.items() if own == mesh)
        number = next(here, None)
        return number if not part.phase.is_repeated or number == part.stage else None

    def note(self, part: Part, kind: str, devices: Sequence[int], name: str, channel: str) -> None:
        """Note that devices are met: ``send``, which does not wait for them, or ``receive``, which does."""
        self.messages.setdefault(part, []).append(Message(kind, self.rows_of(devices), name, channel))

    def note_collective(self, part: Part, mesh: Mesh, instruction: Collective) -> None:
        """Note a collective over an axis of a mesh: with devices of other rows, it waits for them all."""
        axis = instruction.step.axis
        group = {device for own in self.program.devices for device in mesh.group(axis, own)}
        others = tuple(sorted(group - set(self.program.devices)))
        if others:
            channel = f"{axis} of stage {self.stages.index(mesh)}: {instruction.write}"
            for kind in ("send", "receive"):
                self.note(part, kind, others, instruction.write, channel)
