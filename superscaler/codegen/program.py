"""Program: what every device of one row runs: compute, collectives, messages, as plain data.

One program serves all devices of a row: what differs between them are coordinates in the meshes of the row's stages,
which appear as `Extent` (a local size) and `Offset` (where a piece starts). `superscaler.codegen.emit` prints a program
as source; `superscaler.codegen.virtual` executes the same data for all devices in one process.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from superscaler.ir.graph import Graph, Phase
from superscaler.ir.kinds import KINDS
from superscaler.ir.layout import Extent, Layout, piece_index
from superscaler.ir.mesh import Mesh
from superscaler.ir.tensor import DTYPE_BYTES
from superscaler.planner.progress import Part, row_title
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
    host: bool = False
    """Whether it lies in host memory, where no operator reads it."""

    @property
    def num_bytes(self) -> int:
        """Size of the largest piece that a device holds; of sizes that vary, in the example."""
        elements = prod(
            int(extent.constant) * prod(max(pieces) for _, pieces in extent.tables) for extent in self.shape
        )
        return elements * DTYPE_BYTES[self.dtype]


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
    is_started: bool = False
    """Whether the program goes on meanwhile: the result may be kept at once, and is there after an Await.

    In the update, of what is kept: it may set out as soon as the last micro-batch has added to it.
    """
    group: int = -1
    """Of gathers of stored pieces: in which group of the body it travels, while the group before is used; -1: none."""


@dataclass(frozen=True, slots=True)
class Await:
    """Wait for all reductions started in this body but the last few."""

    leaving: int = 0
    """How many of them need not have arrived."""


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
    """Send to the device with the same index in another stage's mesh, maybe itself; does not wait."""

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
    """Point-to-point messages of exact intersections (`superscaler.planner.exchange`).

    Both stages take part: the one that gives does not wait, the one that takes does.
    """

    step: Step
    name: str
    """Names the exchange in all programs that take part."""
    read: str
    """Empty where this is the part of the stage that takes."""
    write: str
    """Empty where this is the part of the stage that gives."""
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
class ToHost:
    """Copy a value to host memory; local."""

    read: str
    write: str


@dataclass(frozen=True, slots=True)
class FromHost:
    """Copy a value in host memory to the device; local."""

    read: str
    write: str
    group: int = -1
    """Of parameters: in which group of the body it travels, while the group before is used; -1: none."""


@dataclass(frozen=True, slots=True)
class Free:
    """Forget values: nothing reads them any more."""

    values: tuple[str, ...]


Instruction = (
    Compute
    | Collective
    | Await
    | Slice
    | Mask
    | Send
    | Receive
    | Exchange
    | Keep
    | Store
    | ToHost
    | FromHost
    | Free
)


@dataclass(frozen=True)
class Program:
    """One row's instructions."""

    row: int
    devices: tuple[int, ...]
    stages: Mapping[int, Mesh]
    """Number -> mesh of every stage these devices take part in."""
    values: Mapping[str, LocalValue]
    stored: tuple[str, ...]
    fed: tuple[str, ...]
    bodies: Mapping[Part, tuple[Instruction, ...]]
    """The instructions of each task: once per micro-batch for F, B and W, once per step for P and U."""
    tasks: tuple[Task, ...]
    """The order of the tasks of F, B and W; P runs before the first, U after the last."""
    outputs: Mapping[str, str]
    """Graph output -> the value that holds it here."""
    graph: Graph

    @property
    def title(self) -> str:
        """What messages call it: ``stage 1``, or ``row 0 (stages 0, 2)``."""
        return row_title(self.row, tuple(self.stages))

    @property
    def micro_batches(self) -> int:
        """How many a step has."""
        return next(iter(self.stages.values())).micro_batches

    def parts(self, phase: Phase) -> tuple[Part, ...]:
        """The bodies of a phase, by stage."""
        return tuple(part for part in self.bodies if part.phase is phase)

    def instructions(self) -> Iterator[tuple[Part, Instruction]]:
        """All instructions, body by body."""
        for part, body in self.bodies.items():
            for instruction in body:
                yield part, instruction

    def mesh_of(self, instruction: Instruction) -> Mesh:
        """The mesh in whose coordinates an instruction's sizes and groups are meant."""
        match instruction:
            case Collective(step=step) | Slice(step=step) | Mask(step=step):
                return step.after.mesh
            case Send(step=step):
                return step.before.mesh
            case Receive(step=step):
                return step.after.mesh
            case Exchange(step=step, read=read):
                return step.before.mesh if read else step.after.mesh
            case _:
                return self.values[(*writes_of(instruction), *reads_of(instruction))[0]].layout.mesh


def reads_of(instruction: Instruction) -> tuple[str, ...]:
    """The values an instruction reads (``step`` is no value); a Keep that adds also reads what it adds to."""
    match instruction:
        case Compute(reads=reads):
            return reads
        case Receive() | Await() | Free():
            return ()
        case Send(read=read) | Exchange(read=read):
            return (read,) if read else ()
        case _:
            return (instruction.read,)


def written_into(instruction: Instruction) -> tuple[str, ...]:
    """The values among those read that a call writes into as well (`Kind.writes_into`)."""
    if not isinstance(instruction, Compute) or instruction.kind not in KINDS:
        return ()
    return tuple(instruction.reads[place] for place in KINDS[instruction.kind].writes_into)


def writes_of(instruction: Instruction) -> tuple[str, ...]:
    """The values an instruction writes."""
    match instruction:
        case Compute(writes=writes):
            return writes
        case Send() | Await() | Free():
            return ()
        case Exchange(write=write):
            return (write,) if write else ()
        case _:
            return (instruction.write,)


def with_reads(instruction: Instruction, names: Mapping[str, str]) -> Instruction:
    """The instruction reading other values in place of those that `names` replaces."""
    if not any(name in names for name in reads_of(instruction)):
        return instruction
    if isinstance(instruction, Compute):
        return replace(instruction, reads=tuple(names.get(name, name) for name in instruction.reads))
    assert not isinstance(instruction, Await | Receive | Free)
    return replace(instruction, read=names[instruction.read])
