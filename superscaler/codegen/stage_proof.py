"""One stage's program executed on paper: a value is known by tensor and Layout, symbolically over the mesh.

What an instruction makes is derived from what its operands really are and from its own fields, never from
what the planner noted of it. A body is executed once, whatever the number of devices and micro-batches.
"""

from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from superscaler.codegen.held import Held, after_collective, after_mask, after_slice, spell
from superscaler.codegen.instruction_text import neighbourhood
from superscaler.codegen.program import (
    Collective,
    Compute,
    Exchange,
    Free,
    Instruction,
    Keep,
    Mask,
    Program,
    Receive,
    Send,
    Slice,
    Store,
    writes_of,
)
from superscaler.codegen.verify_calls import expected_call, is_same_call
from superscaler.codegen.verify_schedule import Message
from superscaler.errors import VerificationError
from superscaler.ir.axes import Axes
from superscaler.ir.graph import Phase
from superscaler.ir.mesh import TIME
from superscaler.planner.exchange import exchange_moves, verify_exchange
from superscaler.planner.plan import Plan
from superscaler.planner.steps import StepKind, apply, exchange_fits, plain, uses_time

AMONG = (Phase.FORWARD, Phase.BACKWARD)
"""The phases that run once per micro-batch."""
BY_LOWERING = "lower(plan) makes programs that pass; where this one was changed by hand, undo the change"
Channels = dict[tuple[int, int], deque[Held]]
"""(sending stage, receiving stage) -> values under way."""
Meetings = dict[str, dict[int, tuple[Exchange, Held | None]]]
"""Exchange -> stage -> its part, and what it gives."""


@dataclass
class StageProof:
    """One stage's program, executed on paper; raises VerificationError at the first fault."""

    plan: Plan
    program: Program
    programs: Sequence[Program]
    whole: dict[str, Held] = field(default_factory=dict)
    """Values that live for the whole step."""
    among: dict[str, Held] = field(default_factory=dict)
    """Values of one micro-batch."""
    kept: dict[str, Held] = field(default_factory=dict)
    """Values that are complete only after all micro-batches."""
    freed: set[str] = field(default_factory=set)
    stored: set[str] = field(default_factory=set)
    ran: list[str] = field(default_factory=list)
    messages: dict[Phase, list[Message]] = field(default_factory=dict)
    phase: Phase = Phase.PREPARE
    index: int = 0

    def __post_init__(self) -> None:
        for name in (*self.program.stored, *self.program.fed):
            value = self.program.values[name]
            layout = plain(value.layout)
            is_stored = name in self.program.stored
            if layout.mesh != self.program.mesh or layout.partial or (is_stored and uses_time(layout)):
                raise VerificationError(
                    f"{name!r} cannot be stored or fed {spell(layout)}", remedy=BY_LOWERING
                )
            self.whole[name] = Held(value.tensor, layout)
            self._check_shape(name, self.whole[name])

    @property
    def axes(self) -> Axes:
        """The graph's axes."""
        return self.plan.placed.axes

    def run(
        self,
        phase: Phase,
        channels: Channels,
        meetings: Meetings,
    ) -> Generator[bool, None, None]:
        """Execute one body; yields False where it must wait for another stage, else True."""
        self.phase = phase
        for index, instruction in enumerate(self.program.bodies[phase]):
            self.index = index
            match instruction:
                case Send():
                    channels.setdefault((self.program.stage, instruction.stage), deque()).append(
                        self._send(instruction)
                    )
                    self._note("send", instruction.stage, instruction.read)
                case Receive():
                    queue = channels.setdefault((instruction.stage, self.program.stage), deque())
                    while not queue:
                        yield False
                    self._note("receive", instruction.stage, instruction.write)
                    self._write(instruction.write, queue.popleft())
                case Exchange():
                    yield from self._exchange(instruction, meetings.setdefault(instruction.name, {}))
                case _:
                    self._local(instruction)
            yield True
        self.index = len(self.program.bodies[phase])

    def fault(self, what: str, remedy: str = BY_LOWERING) -> NoReturn:
        """Raise, showing the instructions around the one at hand."""
        body = self.program.bodies[self.phase]
        source = ""
        if self.index < len(body):
            source = self._source(body[self.index])
        raise VerificationError(
            f"stage {self.program.stage}, phase {self.phase}: {what}\n" + neighbourhood(body, self.index),
            where=source,
            remedy=remedy,
        )

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

    def _read(self, name: str) -> Held:
        if self.phase in AMONG and name in self.among:
            return self.among[name]
        if self.phase is Phase.UPDATE and name in self.kept:
            return self.kept[name]
        if name in self.whole:
            held = self.whole[name]
            if self.phase not in AMONG and uses_time(held.layout):
                self.fault(f"reads {name!r}, which differs between micro-batches, outside of them")
            return held
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
        self.fault(f"reads {name!r} of stage {makers[0].stage}")

    def _write(self, name: str, held: Held) -> None:
        if name in self.whole or name in self.among or name in self.kept or name in self.freed:
            self.fault(f"writes {name!r}, which is written already")
        self._check_shape(name, held)
        if self.phase in AMONG:
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
        if plain(declared.layout) != held.layout:
            self.fault(f"declares {name!r} {spell(plain(declared.layout))}, but it is {spell(held.layout)}")

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
            case Slice(step=step, read=read, write=write):
                held = self._read(read)
                self._write_step(
                    write, held, after_slice(self.axes, held, instruction), f"slice over {step.axis!r}"
                )
            case Mask(step=step, read=read, write=write):
                held = self._read(read)
                self._write_step(write, held, after_mask(held, instruction), f"mask over {step.axis!r}")
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
        if self.phase not in AMONG and uses_time(after.layout):
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
        if placed.placements[operator.name].mesh != self.program.mesh:
            self.fault(f"runs {operator.name!r}, which is placed on {placed.placements[operator.name].mesh}")
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
            held, wanted = self._read(name), Held(tensor, plain(layout))
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
            self._write(name, Held(tensor, plain(layout)))
        self.ran.append(operator.name)

    def _keep(self, instruction: Keep) -> None:
        held = self._read(instruction.read)
        if self.phase not in AMONG:
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
        self._check_shape(instruction.write, held)
        self.kept[instruction.write] = held

    def _store(self, instruction: Store) -> None:
        held, home = self._read(instruction.read), self.program.values.get(instruction.write)
        if self.phase is not Phase.UPDATE or instruction.write not in self.program.stored or home is None:
            self.fault(f"stores into {instruction.write!r}")
        if instruction.write in self.stored:
            self.fault(f"stores into {instruction.write!r} twice")
        fresh = self.plan.graph.updates.get(home.tensor, "")
        wanted = Held(fresh, plain(home.layout))
        if held != wanted:
            self.fault(f"{instruction.write!r} takes {wanted}\n  but {instruction.read!r} is {held}")
        self.stored.add(instruction.write)
        self.whole[instruction.write] = held  # whoever reads it from here on reads the new value

    def _free(self, name: str) -> None:
        scopes = [self.among] if self.phase in AMONG else [self.whole, self.kept]
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

    def _send(self, instruction: Send) -> Held:
        held = self._read(instruction.read)
        if not 0 <= instruction.stage < len(self.programs) or instruction.stage == self.program.stage:
            self.fault(f"sends to stage {instruction.stage}, which is no other stage")
        mesh = self.programs[instruction.stage].mesh
        after = apply(StepKind.SEND, held.layout, target=replace(held.layout, mesh=mesh))
        if after is None:
            self.fault(f"sends {held} to {mesh}, whose shape is another")
        return replace(held, layout=after)

    def _exchange(
        self, instruction: Exchange, meeting: dict[int, tuple[Exchange, Held | None]]
    ) -> Generator[bool, None, None]:
        step, stage = instruction.step, self.program.stage
        giver = next((p.stage for p in self.programs if p.mesh == step.before.mesh), -1)
        taker = next((p.stage for p in self.programs if p.mesh == step.after.mesh), -1)
        gives, takes = self.program.mesh == step.before.mesh, self.program.mesh == step.after.mesh
        if (gives, takes) != (bool(instruction.read), bool(instruction.write)) or min(giver, taker) < 0:
            self.fault(f"takes part in an exchange from {step.before.mesh} to {step.after.mesh}")
        if stage in meeting:
            self.fault(f"takes part in the exchange {instruction.name!r} twice")
        held = self._read(instruction.read) if gives else None
        if held is not None and held.layout != plain(step.before):
            self.fault(
                f"the exchange takes {spell(plain(step.before))}\n  but {instruction.read!r} is {held}"
            )
        meeting[stage] = instruction, held
        if gives and not takes:
            self._note("send", taker, instruction.name, channel=instruction.name)
        if not takes:
            return
        while giver not in meeting:
            yield False
        if giver != stage:
            self._note("receive", giver, instruction.name, channel=instruction.name)
        other, source = meeting[giver]
        if other.step != step or source is None:
            self.fault("the stages disagree about the exchange")
        if step.kind is not StepKind.EXCHANGE or not exchange_fits(source.layout, plain(step.after)):
            self.fault(f"no exchange makes {spell(plain(step.after))} of {source}")
        verify_exchange(step, exchange_moves(step))
        self._write(instruction.write, Held(source.tensor, plain(step.after)))

    def _note(self, kind: str, stage: int, name: str, channel: str = "") -> None:
        self.messages.setdefault(self.phase, []).append(Message(kind, stage, name, channel))


def _same_keywords(instruction: Compute, expected: Mapping[str, Any]) -> bool:
    given = dict(instruction.keywords)
    return given.keys() == expected.keys() and all(is_same_call(given[key], expected[key]) for key in given)
