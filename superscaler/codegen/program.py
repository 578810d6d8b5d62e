"""Program: what every device of one stage runs: compute, collectives, messages, as plain data.

One program serves all devices of a stage: what differs between them are coordinates in the stage's mesh, which
appear as `Extent` (a local size) and `Offset` (where a piece starts). `superscaler.codegen.emit` prints a program as
source; `superscaler.codegen.virtual` executes the same data for all devices in one process.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from superscaler.ir.graph import Graph, Phase
from superscaler.ir.layout import Extent, Layout, piece_index
from superscaler.ir.mesh import Mesh
from superscaler.planner.schedule import Task
from superscaler.planner.steps import Step


@dataclass(frozen=True, slots=True)
class Offset:
    """Where a device's piece starts: the sizes of all pieces before it, times `scale`."""

    axes: tuple[str, ...]
    """Mesh axes (or ``mb``) that cut, major to minor; none: the piece starts at 0."""
    pieces: tuple[int, ...]
    scale: int = 1

    def at(self, mesh: Mesh, coordinates: Mapping[str, int]) -> int:
        """The start at these coordinates (with ``mb`` where time is cut)."""
        return self.scale * sum(self.pieces[: piece_index(mesh, self.axes, coordinates)]) if self.axes else 0


@dataclass(frozen=True, slots=True)
class LocalValue:
    """What one device holds under a name."""

    name: str
    tensor: str
    """The logical tensor it is a part of."""
    dtype: str
    shape: tuple[Extent, ...]
    """Local size per dim of the logical tensor (of fine dims for a value made by a reshape between steps)."""
    layout: Layout
    fine: bool = False
    """Whether the dims are the fine dims."""


@dataclass(frozen=True, slots=True)
class Compute:
    """Call a function; arguments hold Refs into `reads`, and Extents or Offsets where they depend on the device."""

    operator: str
    """The graph's operator, or empty for a reshape between steps."""
    kind: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    arguments: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Collective:
    """all_reduce, reduce_scatter, all_gather or all_to_all over one mesh axis."""

    step: Step
    read: str
    write: str
    dim: int = -1
    """Dim of the value: scattered into, gathered along; for all-to-all the dim that becomes cut."""
    from_dim: int = -1
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Slice:
    """Keep one's own piece of a dim; local. The axis may be ``mb``."""

    step: Step
    read: str
    write: str
    dim: int
    start: Offset
    length: Extent


@dataclass(frozen=True, slots=True)
class Mask:
    """Keep the value on the first device along an axis, zeros elsewhere; local."""

    step: Step
    read: str
    write: str


@dataclass(frozen=True, slots=True)
class Send:
    """Send to the device with the same index in another stage's mesh; does not wait."""

    step: Step
    read: str
    stage: int
    """The stage that receives."""


@dataclass(frozen=True, slots=True)
class Receive:
    """Receive from the device with the same index in another stage's mesh."""

    step: Step
    write: str
    stage: int
    """The stage that sends."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Exchange:
    """Point-to-point messages of exact intersections (`superscaler.planner.exchange`); both stages take part."""

    step: Step
    name: str
    """Names the exchange in all programs that take part."""
    read: str
    """Empty on devices that hold nothing of the source."""
    write: str
    """Empty on devices that want nothing of the target."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Keep:
    """Keep a micro-batch's value for the update: add it up, or keep the last."""

    read: str
    write: str
    add: bool


@dataclass(frozen=True, slots=True)
class Store:
    """Overwrite a stored value."""

    read: str
    write: str


@dataclass(frozen=True, slots=True)
class Free:
    """Forget values: nothing reads them any more."""

    values: tuple[str, ...]


Instruction = Compute | Collective | Slice | Mask | Send | Receive | Exchange | Keep | Store | Free


@dataclass(frozen=True)
class Program:
    """One stage's instructions."""

    stage: int
    mesh: Mesh
    values: Mapping[str, LocalValue]
    stored: tuple[str, ...]
    fed: tuple[str, ...]
    bodies: Mapping[Phase, tuple[Instruction, ...]]
    """Per phase the instructions of one task: once per micro-batch for F and B, once per step for P and U."""
    tasks: tuple[Task, ...]
    """The order of forward and backward tasks; P runs before the first, U after the last."""
    outputs: Mapping[str, str]
    """Graph output -> the value that holds it here."""
    graph: Graph

    def instructions(self) -> Iterator[tuple[Phase, Instruction]]:
        """All instructions, phase by phase."""
        for phase, body in self.bodies.items():
            for instruction in body:
                yield phase, instruction


def reads_of(instruction: Instruction) -> tuple[str, ...]:
    """The values an instruction reads (``step`` is no value); a Keep that adds also reads what it adds to."""
    match instruction:
        case Compute(reads=reads):
            return reads
        case Receive() | Free():
            return ()
        case Send(read=read) | Exchange(read=read):
            return (read,) if read else ()
        case _:
            return (instruction.read,)


def writes_of(instruction: Instruction) -> tuple[str, ...]:
    """The values an instruction writes."""
    match instruction:
        case Compute(writes=writes):
            return writes
        case Send() | Free():
            return ()
        case Exchange(write=write):
            return (write,) if write else ()
        case _:
            return (instruction.write,)
