"""One row's program executed on paper: a value is known by tensor and Layout, symbolically over the mesh.

What an instruction makes is derived from what its operands really are and from its own fields, never from
what the planner noted of it. A body is executed once, whatever the number of devices and micro-batches.
"""

from collections import Counter, deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NoReturn

from superscaler.codegen.held import Held, after_collective, after_mask, after_slice, spell
from superscaler.codegen.instruction_text import neighbourhood
from superscaler.codegen.neighbours import Neighbours
from superscaler.codegen.program import (
    Await,
    Collective,
    Compute,
    Exchange,
    Free,
    FromHost,
    Instruction,
    Keep,
    Mask,
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
from superscaler.codegen.verify_calls import expected_call, is_same_call
from superscaler.codegen.verify_overlap import BodyOverlap
from superscaler.errors import VerificationError
from superscaler.ir.axes import Axes
from superscaler.ir.graph import Phase
from superscaler.ir.layout import Layout
from superscaler.ir.mesh import TIME, Mesh
from superscaler.planner.exchange import exchange_moves, verify_exchange
from superscaler.planner.plan import Plan
from superscaler.planner.steps import StepKind, apply, exchange_fits, plain, uses_time

BY_LOWERING = "lower(plan) makes programs that pass; where this one was changed by hand, undo the change"
_START = Part(Phase.PREPARE)
Channel = tuple[int, int, int, int]
"""Sending stage, receiving stage, sending row, receiving row."""
Channels = dict[Channel, deque[Held]]
"""The values under way."""
Meetings = dict[str, dict[int, tuple[Exchange, Held]]]
"""Exchange -> row that gives -> its part, and what it gives."""


@dataclass
class RowProof:
    """One row's program, executed on paper; raises VerificationError at the first fault."""

    plan: Plan
    program: Program
    programs: Sequence[Program]
    whole: dict[str, Held] = field(default_factory=dict)
    """Values that live for the whole step."""
    among: dict[str, Held] = field(default_factory=dict)
    """Values of one micro-batch, each of one stage."""
    kept: dict[str, Held] = field(default_factory=dict)
    """Values that are complete only after all micro-batches."""
    overlaps: dict[Part, BodyOverlap] = field(init=False)
    """What goes on while each body computes."""
    neighbours: Neighbours = field(init=False)
    freed: set[str] = field(default_factory=set)
    stored: set[str] = field(default_factory=set)
    ran: Counter[str] = field(default_factory=Counter)
    taken: set[str] = field(default_factory=set)
    """Exchanges received."""
    part: Part = _START
    index: int = 0

    def __post_init__(self) -> None:
        self.overlaps = {part: BodyOverlap(self.program, part) for part in self.program.bodies}
        self.neighbours = Neighbours(self.program, self.programs, self.plan.materialized.stages)
        homes = {mesh.home for mesh in self.program.stages.values()}
        for name in (*self.program.stored, *self.program.fed):
            value = self.program.values[name]
            layout = plain(value.layout)
            is_stored = name in self.program.stored
            if layout.mesh not in homes or layout.partial or (is_stored and uses_time(layout)):
                raise VerificationError(
                    f"{name!r} cannot be stored or fed {spell(layout)}", remedy=BY_LOWERING
                )
            self.whole[name] = Held(value.tensor, layout, host=value.host)
            self._check_shape(name, self.whole[name])

    @property
    def axes(self) -> Axes:
        """The graph's axes."""
        return self.plan.placed.axes

    @cached_property
    def readers(self) -> Counter[str]:
        """How many instructions read a value."""
        return Counter(name for _, i in self.program.instructions() for name in reads_of(i))

    @property
    def phase(self) -> Phase:
        """The phase that is being executed."""
        return self.part.phase

    @property
    def overlap(self) -> BodyOverlap:
        """What goes on while the body at hand computes."""
        return self.overlaps[self.part]

    def run(self, part: Part, channels: Channels, meetings: Meetings) -> Generator[bool, None, None]:
        """Execute one body; yields False where it must wait for another body, else True."""
        for index, instruction in enumerate(self.program.bodies[part]):
            self.part, self.index = part, index
            match instruction:
                case Send():
                    held, keys = self._send(instruction)
                    for key in keys:
                        channels.setdefault(key, deque()).append(held)
                case Receive():
                    queues = [channels.setdefault(key, deque()) for key in self._channels_to(instruction)]
                    while not all(queues):
                        yield False
                    self.part, self.index = part, index
                    held, *others = (queue.popleft() for queue in queues)
                    if any(other != held for other in others):
                        self.fault(f"receives {held} and {others[0]} as one value")
                    self._write(instruction.write, held)
                case Exchange():
                    meeting = meetings.setdefault(instruction.name, {})
                    if instruction.read:
                        if self.program.row in meeting:
                            self.fault(f"takes part in the exchange {instruction.name!r} twice")
                        meeting[self.program.row] = instruction, self._give(instruction)
                    givers = self.neighbours.rows_of(instruction.step.before.mesh.devices)
                    while instruction.write and not meeting.keys() >= set(givers):
                        yield False
                    self.part, self.index = part, index
                    if instruction.write:
                        self._take(instruction, meeting, givers)
                case _:
                    self._local(instruction)
            yield True
        self.part, self.index = part, len(self.program.bodies[part])
        for name in self.overlap.under_way:
            self.fault(f"ends while {name!r} is under way", "end it with an Await")

    def fault(self, what: str, remedy: str = BY_LOWERING) -> NoReturn:
        """Raise, showing the instructions around the one at hand."""
        body = self.program.bodies[self.part]
        source = ""
        if self.index < len(body):
            source = self._source(body[self.index])
        raise VerificationError(
            f"{self.program.title}, phase {self.part.phase}: {what}\n" + neighbourhood(body, self.index),
            where=source,
            remedy=remedy,
        )

    def _fault_if(self, what: str) -> None:
        """Raise what a check found, if it found something."""
        if what:
            self.fault(what)

    def _source(self, instruction: Instruction) -> str:
        graph = self.plan.graph
        if isinstance(instruction, Compute) and instruction.operator in graph.by_name:
            return graph.by_name[instruction.operator].source
        for name in (getattr(instruction, "read", ""), getattr(instruction, "write", "")):
            tensor = self.program.values[name].tensor if name in self.program.values else ""
            if tensor in graph.writer:
                return graph.writer[tensor].source
        return ""

    # values

    def _read(self, name: str, *, host: bool = False) -> Held:
        if name in self.overlap.under_way:
            self.fault(f"reads {name!r}, which is under way", "wait for it first, with an Await")
        held = self._present(name)
        if held.host and not host:
            self.fault(f"reads {name!r}, which is in host memory", "fetch it first, with a FromHost")
        if host and not held.host:
            self.fault(f"reads {name!r}, which is not in host memory", "stow it first, with a ToHost")
        return held

    def _present(self, name: str) -> Held:
        if self.phase.is_repeated and name in self.among:
            held = self.among[name]
            if held.layout.mesh != self.program.stages[self.part.stage]:
                self.fault(f"reads {name!r} of another stage", "hand it over with a Send and a Receive")
            return held
        if self.phase is Phase.UPDATE and name in self.kept:
            return self.kept[name]
        if name in self.whole:
            held = self.whole[name]
            if not self.phase.is_repeated and uses_time(held.layout):
                self.fault(f"reads {name!r}, which differs between micro-batches, outside of them")
            here = self.program.stages.get(self.part.stage)
            return replace(held, layout=held.layout.on(here)) if here and _at_home(held, here) else held
        return self._unreadable(name)

    def _unreadable(self, name: str) -> NoReturn:
        """Say why a value cannot be read."""
        if name in self.freed:
            self.fault(f"reads {name!r} after it was freed", "free it behind its last reader")
        if name in self.kept:
            self.fault(f"reads {name!r} before all micro-batches have added to it", "read it in the update")
        if name in self.among:
            self.fault(f"reads {name!r} of one micro-batch", "keep it for the whole step with a Keep")
        makers = [p for p in self.programs for _, i in p.instructions() if name in writes_of(i)]
        if not makers:
            remedy = "a stage, task or instruction that makes it is missing"
            self.fault(f"reads {name!r}, which nothing writes", remedy)
        if self.program in makers:
            self.fault(f"reads {name!r} before it is written")
        self.fault(f"reads {name!r} of {makers[0].title}")

    def _write(self, name: str, held: Held) -> None:
        if name in self.whole or name in self.among or name in self.kept or name in self.freed:
            self.fault(f"writes {name!r}, which is written already")
        self._check_shape(name, held)
        if self.phase.is_repeated:
            if held.layout.mesh != self.program.stages[self.part.stage]:
                self.fault(f"makes {name!r} on {held.layout.mesh}, which is another stage")
            self.among[name] = held
            return
        if uses_time(held.layout):
            self.fault(f"makes {name!r} {held} outside of the micro-batches")
        self.whole[name] = held

    def _check_shape(self, name: str, held: Held) -> None:
        """What the program declares of a value is what it is: receives and frees go by it."""
        declared = self.program.values.get(name)
        if declared is None:
            self.fault(f"writes {name!r}, which it does not declare")
        dtype = self.plan.graph.tensors[held.tensor].dtype
        if (
            declared.tensor != held.tensor
            or declared.dtype != dtype
            or declared.shape != held.shape(self.axes)
        ):
            self.fault(
                f"declares {name!r} as a piece {[e.constant for e in declared.shape]} of "
                f"{declared.tensor!r}, but it holds {held}"
            )
        if declared.host != held.host:
            places = ("on the device", "in host memory")
            self.fault(f"declares {name!r} {places[declared.host]}, but it is {places[held.host]}")
        if plain(declared.layout) != held.layout:
            self.fault(f"declares {name!r} {spell(plain(declared.layout))}, but it is {spell(held.layout)}")

    def _held_here(self, layout: Layout) -> Layout:
        """A layout as the phase at hand holds it: what outlives a micro-batch is held at home."""
        return layout if self.phase.is_repeated else layout.at_home

    def _is_complete(self, name: str) -> bool:
        """Whether a value is kept for one reader in the update: so it may be overwritten since the last micro-batch."""
        return self.phase is Phase.UPDATE and name in self.kept and self.readers[name] == 1

    # instructions

    def _local(self, instruction: Instruction) -> None:
        match instruction:
            case Compute(operator=""):
                self._reshape(instruction)
            case Compute():
                self._compute(instruction)
            case Collective(step=step, read=read, write=write):
                held = self._read(read)
                self._write_step(
                    write,
                    held,
                    after_collective(self.axes, held, instruction),
                    f"{step.kind} over {step.axis!r}",
                )
                self.neighbours.note_collective(self.part, held.layout.mesh, instruction)
                self._fault_if(self.overlap.collective(instruction, is_complete=self._is_complete(read)))
            case Await(leaving=leaving):
                self.overlap.wait(leaving)
            case Slice(step=step, read=read, write=write):
                held = self._read(read)
                self._write_step(
                    write, held, after_slice(self.axes, held, instruction), f"slice over {step.axis!r}"
                )
            case Mask(step=step, read=read, write=write):
                held = self._read(read)
                self._write_step(write, held, after_mask(held, instruction), f"mask over {step.axis!r}")
            case ToHost(read=read, write=write):
                self._write(write, replace(self._read(read), host=True))
            case FromHost(read=read, write=write):
                self._fault_if(self.overlap.fetch(instruction))
                self._write(write, replace(self._read(read, host=True), host=False))
            case Keep():
                self._keep(instruction)
            case Store():
                self._store(instruction)
            case Free(values=values):
                for name in values:
                    self._free(name)

    def _write_step(self, name: str, held: Held, after: Held | None, what: str) -> None:
        if after is None:
            self.fault(f"the {what} is not allowed on {held}")
        if not self.phase.is_repeated and uses_time(after.layout):
            self.fault(f"the {what} makes micro-batches where there are none")
        self._write(name, after)

    def _reshape(self, instruction: Compute) -> None:
        held = self._read(instruction.reads[0])
        (write,) = instruction.writes
        shape = tuple(instruction.arguments[1]) if len(instruction.arguments) == 2 else ()
        declared = self.program.values.get(write)
        options = [
            replace(held, fine=fine)
            for fine in (True, False)
            if replace(held, fine=fine).shape(self.axes) == shape
        ]
        if instruction.kind != "reshape" or not options:
            self.fault(f"the reshape of {held} is neither to its dims nor to its fine dims")
        wanted = [option for option in options if declared is not None and option.fine == declared.fine]
        self._write(write, (wanted or options)[0])

    def _compute(self, instruction: Compute) -> None:
        placed, graph = self.plan.placed, self.plan.graph
        operator = graph.by_name.get(instruction.operator)
        if operator is None or operator.kind != instruction.kind:
            self.fault(
                f"runs {instruction.operator!r} ({instruction.kind}), which is no operator of the graph"
            )
        mesh = placed.placements[operator.name].mesh
        stages = {m.home for m in self.program.stages.values()}
        is_here = (
            mesh == self.program.stages[self.part.stage] if self.phase.is_repeated else mesh.home in stages
        )
        if not is_here:
            self.fault(f"runs {operator.name!r}, which is placed on {mesh}")
        if placed.phases[operator.name] is not self.phase:
            self.fault(f"runs {operator.name!r}, which belongs to phase {placed.phases[operator.name]}")
        if len(instruction.reads) != len(operator.reads) or len(instruction.writes) != len(operator.writes):
            self.fault(
                f"{operator.name!r} reads {len(operator.reads)} and writes {len(operator.writes)} tensors"
            )
        for name, tensor, layout in zip(
            instruction.reads, operator.reads, placed.reads(operator), strict=True
        ):
            if layout is None:
                if name != tensor:
                    self.fault(f"{operator.name!r} wants the number of the step, not {name!r}")
                continue
            held, wanted = self._read(name), Held(tensor, plain(self._held_here(layout)))
            if held != wanted:
                self.fault(
                    f"{operator.name!r} wants {wanted}\n  but {name!r} is {held}"
                    + (" (fine)" if held.fine else "")
                )
        arguments, keywords = expected_call(placed, operator)
        if not is_same_call(instruction.arguments, arguments) or not _same_keywords(instruction, keywords):
            self.fault(
                f"{operator.name!r} must be called with {arguments} {dict(keywords)}\n"
                f"  but is with {instruction.arguments} {dict(instruction.keywords)}"
            )
        for name, tensor, layout in zip(
            instruction.writes, operator.writes, placed.writes(operator), strict=True
        ):
            self._write(name, Held(tensor, plain(self._held_here(layout))))
        self.ran[operator.name] += 1

    def _keep(self, instruction: Keep) -> None:
        held = self._present(instruction.read)
        if not self.phase.is_repeated:
            self.fault("keeps a value outside of the micro-batches")
        if instruction.write in self.kept or instruction.write in self.whole:
            self.fault(f"keeps {instruction.write!r} twice")
        if instruction.add:
            after = apply(StepKind.ACCUMULATE, held.layout, TIME)
            if after is None:
                self.fault(f"adds {held} up over the micro-batches, of which it holds no summands")
            held = replace(held, layout=after)
        elif uses_time(held.layout):
            self.fault(f"keeps {held} of the last micro-batch alone")
        held = replace(held, layout=held.layout.at_home)
        self._check_shape(instruction.write, held)
        self.kept[instruction.write] = held

    def _store(self, instruction: Store) -> None:
        home = self.program.values.get(instruction.write)
        if self.phase is not Phase.UPDATE or instruction.write not in self.program.stored or home is None:
            self.fault(f"stores into {instruction.write!r}")
        held = self._read(instruction.read, host=home.host)
        if instruction.write in self.stored:
            self.fault(f"stores into {instruction.write!r} twice")
        fresh = self.plan.graph.updates.get(home.tensor, "")
        wanted = Held(fresh, plain(home.layout), host=home.host)
        if held != wanted:
            self.fault(f"{instruction.write!r} takes {wanted}\n  but {instruction.read!r} is {held}")
        self.stored.add(instruction.write)
        self.whole[instruction.write] = held  # whoever reads it from here on reads the new value

    def _free(self, name: str) -> None:
        scopes = [self.among] if self.phase.is_repeated else [self.whole, self.kept]
        staying = (*self.program.stored, *self.program.fed, *self.program.outputs.values())
        scope = next((scope for scope in scopes if name in scope), None)
        if scope is None or name in staying:
            self.fault(
                f"frees {name!r}, "
                + ("which must stay" if name in staying else "which it does not hold here")
            )
        del scope[name]
        self.freed.add(name)

    # between stages

    def _send(self, instruction: Send) -> tuple[Held, list[Channel]]:
        held, stages = self._read(instruction.read), self.plan.materialized.stages
        source = held.layout.mesh
        if not 0 <= instruction.stage < len(stages) or stages[instruction.stage] == source:
            self.fault(f"sends to stage {instruction.stage}, which is no other stage")
        mesh = stages[instruction.stage]
        after = apply(StepKind.SEND, held.layout, target=replace(held.layout, mesh=mesh))
        if after is None:
            self.fault(f"sends {held} to {mesh}, whose shape is another")
        devices, rows = self.neighbours.opposite(source, mesh)
        ends = stages.index(source), instruction.stage
        self.neighbours.note(self.part, "send", devices, instruction.read, str(ends))
        return replace(held, layout=after), [(*ends, self.program.row, row) for row in rows]

    def _channels_to(self, instruction: Receive) -> list[Channel]:
        """The channels a value is received from: one per row that sends to devices of this one."""
        stages, mesh = self.plan.materialized.stages, instruction.step.after.mesh
        own = self.neighbours.stage_of(mesh, self.part)
        if not 0 <= instruction.stage < len(stages) or own in (None, instruction.stage):
            self.fault(f"receives from stage {instruction.stage} on {mesh}, which is no other stage")
        source = stages[instruction.stage]
        if len(source.devices) != len(mesh.devices):
            self.fault(f"receives from {source}, whose shape is another")
        devices, rows = self.neighbours.opposite(mesh, source)
        ends = instruction.stage, stages.index(mesh)
        self.neighbours.note(self.part, "receive", devices, instruction.write, str(ends))
        return [(*ends, row, self.program.row) for row in rows]

    def _give(self, instruction: Exchange) -> Held:
        """The giving part of an exchange."""
        step = instruction.step
        if self.neighbours.stage_of(step.before.mesh, self.part) is None:
            self.fault(f"gives to an exchange from {step.before.mesh} to {step.after.mesh}")
        held = self._read(instruction.read)
        if held.layout != plain(step.before):
            self.fault(
                f"the exchange takes {spell(plain(step.before))}\n  but {instruction.read!r} is {held}"
            )
        self.neighbours.note(self.part, "send", step.after.mesh.devices, instruction.name, instruction.name)
        return held

    def _take(
        self, instruction: Exchange, meeting: Mapping[int, tuple[Exchange, Held]], givers: Sequence[int]
    ) -> None:
        """The taking part of an exchange, once all who give are there."""
        step = instruction.step
        if self.neighbours.stage_of(step.after.mesh, self.part) is None or not givers:
            self.fault(f"takes from an exchange from {step.before.mesh} to {step.after.mesh}")
        self.neighbours.note(
            self.part, "receive", step.before.mesh.devices, instruction.name, instruction.name
        )
        sources = [meeting[row] for row in givers]
        source = sources[0][1]
        if any(other.step != step or held != source for other, held in sources):
            self.fault("the stages disagree about the exchange")
        if step.kind is not StepKind.EXCHANGE or not exchange_fits(source.layout, plain(step.after)):
            self.fault(f"no exchange makes {spell(plain(step.after))} of {source}")
        verify_exchange(step, exchange_moves(step))
        if instruction.name in self.taken:
            self.fault(f"takes part in the exchange {instruction.name!r} twice")
        self.taken.add(instruction.name)
        self._write(instruction.write, Held(source.tensor, plain(step.after)))


def _at_home(held: Held, mesh: Mesh) -> bool:
    """Whether a value is held under the home of a mesh."""
    return held.layout.mesh == mesh.home


def _same_keywords(instruction: Compute, expected: Mapping[str, Any]) -> bool:
    given = dict(instruction.keywords)
    return given.keys() == expected.keys() and all(is_same_call(given[key], expected[key]) for key in given)
