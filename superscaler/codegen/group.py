"""Group: the instructions of the update in few groups of one kind, which are printed as one call on lists.

The order of messages between stages stays as it is; within that and the data dependencies, instructions that can be
joined wait for one another.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from superscaler.codegen.offload import fold_moves
from superscaler.codegen.printed_program import PrintedProgram
from superscaler.codegen.program import (
    Await,
    Collective,
    Compute,
    Exchange,
    FromHost,
    Instruction,
    Part,
    Program,
    Receive,
    Send,
    Slice,
    Store,
    ToHost,
    reads_of,
    writes_of,
)
from superscaler.ir.graph import Phase
from superscaler.ir.optimizers import OPTIMIZERS
from superscaler.planner.steps import StepKind

LISTED = {"squared_norm": "squared_norms", "count_nonfinite": "counts_nonfinite"}
"""Kinds that make a number of one gradient -> the function that does so for a list of them."""
_JOINED = {StepKind.ALL_REDUCE, StepKind.REDUCE_SCATTER, StepKind.ALL_GATHER}


@dataclass(frozen=True)
class Group:
    """Instructions of one signature that run together; mostly one alone."""

    instructions: tuple[Instruction, ...]


@dataclass(frozen=True)
class Update:
    """The update of a program."""

    groups: tuple[Group, ...]
    in_place: dict[str, str]
    """Result of an optimizer -> the value it overwrites."""


def fold_updates(program: Program) -> Program:
    """The program whose updates in place fetch and stow by themselves what they overwrite in host memory."""
    return fold_moves(program, _in_place(program.bodies.get(Part(Phase.UPDATE), ())))


def group_update(printed: PrintedProgram) -> Update:
    """Bring the update of a program into groups."""
    body = printed.bodies[Part(Phase.UPDATE)]
    in_place = _in_place(body)
    stores = {i for i in body if isinstance(i, Store) and in_place.get(i.read) == i.write}
    body = [i for i in body if not (isinstance(i, Store) and i in stores)]
    waits = _dependencies(printed, body, in_place)
    groups: list[Group] = []
    done: set[int] = set()
    left = list(range(len(body)))
    while left:
        ready = [i for i in left if waits[i] <= done]
        assert ready, "the update waits for itself"
        urgency = min(_urgency(body[i]) for i in ready)
        ready = [i for i in ready if _urgency(body[i]) == urgency]
        signature = _signature(printed, body[ready[0]])
        chosen = [
            i
            for i in ready
            if signature
            and _signature(printed, body[i]) == signature
            and _is_in_place(body[i], in_place) == _is_in_place(body[ready[0]], in_place)
        ] or ready[:1]
        groups.append(Group(tuple(body[i] for i in chosen)))
        done.update(chosen)
        left = [i for i in left if i not in done]
    return Update(tuple(groups), in_place)


def _in_place(body: Sequence[Instruction]) -> dict[str, str]:
    """Which operands optimizers overwrite: all results of one that are stored again."""
    sliced = {i.write: i.read for i in body if isinstance(i, Slice)}
    fetched = {i.read: i.write for i in body if isinstance(i, FromHost)}
    stowed = {i.write: i.read for i in body if isinstance(i, ToHost)}
    stored = {stowed.get(i.read, i.read): fetched.get(i.write, i.write) for i in body if isinstance(i, Store)}
    table: dict[str, str] = {}
    for instruction in body:
        if not isinstance(instruction, Compute) or instruction.kind not in OPTIMIZERS:
            continue
        operands = operands_of(instruction)
        parameter, *states = operands
        states_stay = all(
            stored.get(new) == old for new, old in zip(instruction.writes[1:], states, strict=False)
        )
        is_stored = stored.get(instruction.writes[0]) == parameter or parameter in sliced
        if states_stay and is_stored:
            table.update(zip(instruction.writes, operands, strict=True))
    return table


def operands_of(update: Compute) -> list[str]:
    """What an optimizer updates: the parameter and its states; between them it reads the gradient."""
    parameter, _, *states = update.reads[: len(update.writes) + 1]
    return [parameter, *states]


def _dependencies(
    printed: PrintedProgram, body: Sequence[Instruction], in_place: dict[str, str]
) -> list[set[int]]:
    """Per instruction the numbers of those that must have run."""
    writer = {
        name: i
        for i, instruction in enumerate(body)
        for name in writes_of(instruction)
        if not _is_store(instruction)
    }
    source = {i.write: i.read for i in body if isinstance(i, Slice)}
    readers: dict[str, set[int]] = {}
    for number, instruction in enumerate(body):
        for name in reads_of(instruction):
            while name is not None:
                readers.setdefault(name, set()).add(number)
                name = source.get(name)  # type: ignore[assignment]
    waits: list[set[int]] = []
    order = _MessageOrder()
    started: set[int] = set()
    arrived: dict[int, int] = {}
    for number, instruction in enumerate(body):
        before = {writer[name] for name in reads_of(instruction) if name in writer}
        before |= {arrived[i] for i in before & arrived.keys()}
        if isinstance(instruction, Collective) and instruction.is_started:
            started.add(number)
        if isinstance(instruction, Await):
            before |= started
            arrived |= dict.fromkeys(started, number)
        for name in _overwritten(instruction, in_place):
            origin = source.get(name, name)
            before |= {
                i
                for i in readers.get(origin, set()) | readers.get(name, set())
                if _reads_old(body[i], instruction)
            }
        before.discard(number)
        if isinstance(instruction, (Send, Receive, Exchange)):
            before |= order.after(number)
        elif printed.meets_other_rows(instruction):
            assert isinstance(instruction, Collective)
            joined = _signature(printed, instruction) if printed.meets_like_rows(instruction) else ()
            before |= order.after(number, joined)
        waits.append(before)
    return waits


class _MessageOrder:
    """Keeps whatever other rows wait for in one order; collectives of one signature in a row may be joined."""

    def __init__(self) -> None:
        self.last: set[int] = set()
        self.run: set[int] = set()
        self.signature: tuple = ()

    def after(self, number: int, signature: tuple = ()) -> set[int]:
        """What the next message must come after."""
        if not signature or signature != self.signature:
            self.last, self.run = self.run, set()
        self.run.add(number)
        self.signature = signature
        return set(self.last)


def _is_in_place(instruction: Instruction, in_place: dict[str, str]) -> bool:
    """Whether it is an update that overwrites what it updates."""
    return isinstance(instruction, Compute) and instruction.writes[0] in in_place


def _is_store(instruction: Instruction) -> bool:
    return isinstance(instruction, Store)


def _overwritten(instruction: Instruction, in_place: dict[str, str]) -> list[str]:
    """The values whose memory an instruction changes."""
    if isinstance(instruction, Store):
        return [instruction.write]
    if isinstance(instruction, Compute):
        return [in_place[name] for name in instruction.writes if name in in_place]
    if isinstance(instruction, Collective) and instruction.step.kind is StepKind.ALL_REDUCE:
        return [instruction.read]
    return []


def _reads_old(reader: Instruction, writer: Instruction) -> bool:
    """Whether a reader must come before a writer; what feeds the writer comes before it anyway."""
    return reader is not writer and not set(writes_of(writer)) & set(reads_of(reader))


def _urgency(instruction: Instruction) -> int:
    """Which of the ready instructions goes first.

    Sends, then local work, collectives, receives, what is made of all gradients, updates, stores.
    """
    match instruction:
        case Send():
            return 0
        case Compute(kind=kind) if kind in LISTED:
            return 5
        case Compute(kind=kind) if kind in OPTIMIZERS:
            return 6
        case Slice() | Compute():
            return 1
        case Store():
            return 7
        case Collective():
            return 3
        case Receive() | Exchange():
            return 4
        case _:
            return 2


def _signature(printed: PrintedProgram, instruction: Instruction) -> tuple:
    """What instructions printed as one call have in common; empty for those printed alone."""
    match instruction:
        case Collective(step=step) if step.kind in _JOINED:
            axis = printed.axis_variable(printed.program.mesh_of(instruction), step.axis)
            return "collective", step.kind, axis, step.before.reducer, instruction.is_started
        case Slice(step=step, start=start) if len(set(start.pieces)) == 1 and step.axis != "mb":
            outer = step.before.cuts[step.dim]
            is_stored = instruction.read in printed.program.stored
            axis = printed.axis_variable(printed.program.mesh_of(instruction), step.axis)
            return ("slice", axis, is_stored) if not outer or start.axes == (step.axis,) else ()
        case Compute(kind=kind, keywords=keywords) if kind in OPTIMIZERS:
            numbers = instruction.reads[len(instruction.writes) + 1 :]
            hosted = tuple(
                name in printed.program.values and printed.value(name).host for name in instruction.reads
            )
            return "update", kind, str(keywords), hosted, numbers
        case Compute(kind=kind, keywords=keywords) if kind in LISTED:
            readers = printed.readers.get(instruction.writes[0], ())
            return "listed", kind, str(keywords), tuple(writes_of(reader) for _, reader in readers)
        case Store():
            return ("store",)
        case _:
            return ()
