"""Lower: a Plan becomes one Program per row of devices: the row's part of the global sequence of events.

Whole sizes in arguments become local ones, steps on fine dims become operations on real dims (with a reshape around
them where a dim is cut inside), and transfers between stages become a send here and a receive there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from superscaler.codegen.box import box_within
from superscaler.codegen.program import (
    Collective,
    Compute,
    Exchange,
    Instruction,
    Keep,
    LocalValue,
    Mask,
    Offset,
    Part,
    Program,
    Receive,
    Send,
    Slice,
    Store,
)
from superscaler.ir.axes import Axes
from superscaler.ir.graph import Operator, Phase, Ref
from superscaler.ir.kinds import row_of
from superscaler.ir.layout import Extent, Layout
from superscaler.ir.mesh import Mesh
from superscaler.planner import materialize as events
from superscaler.planner.materialize import PHASES, MaterializedGraph
from superscaler.planner.plan import Plan
from superscaler.planner.steps import Step, StepKind


def lower(plan: Plan) -> tuple[Program, ...]:
    """One program per row."""
    materialized = plan.materialized
    builders = [_Lowering(materialized, row) for row in range(len(materialized.rows))]
    for phase in PHASES:
        for number, event in enumerate(materialized.events[phase]):
            stages = {materialized.stages.index(mesh) for mesh in materialized.meshes_of(event)}
            for builder in builders:
                if not stages.isdisjoint(builder.stages):
                    builder.add(phase, event, f"{phase.lower()}{number}")
    return tuple(builder.program(plan.schedule.rows[builder.row]) for builder in builders)


def local_shape(axes: Axes, tensor: str, layout: Layout) -> tuple[Extent, ...]:
    """Local size per dim of a tensor."""
    shape, position = [], 0
    for dim in axes.dims[tensor]:
        extent = Extent(1)
        for _ in dim:
            extent = extent * layout.extent(position)
            position += 1
        shape.append(extent)
    return tuple(shape)


def fine_shape(layout: Layout) -> tuple[Extent, ...]:
    """Local size per fine dim."""
    return tuple(layout.extent(dim) for dim in range(len(layout.sizes)))


@dataclass
class _Lowering:
    materialized: MaterializedGraph
    row: int
    values: dict[str, LocalValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.graph, self.axes = self.materialized.graph, self.materialized.placed.axes
        here = self.materialized.rows[self.row]
        self.devices = here.devices
        self.stages = {number: self.materialized.stages[number] for number in here.stages}
        self.homes = {mesh.home for mesh in self.stages.values()}
        phases = self.materialized.stage_phases
        self.bodies: dict[Part, list[Instruction]] = {
            part: []
            for phase in PHASES
            for part in (
                [Part(phase, number) for number in here.stages if phase in phases[number]]
                if phase.is_repeated
                else [Part(phase)]
            )
        }
        self.stored = tuple(name for name in self.materialized.stored if self._is_here(name))
        self.fed = tuple(name for name in self.materialized.fed if self._is_here(name))
        for name in (*self.stored, *self.fed):
            self._declare(name)

    def program(self, tasks: Sequence[Any]) -> Program:
        """What has been gathered; a stage with nothing to do in a phase has no such tasks."""
        outputs = {name: value for name, value in self.materialized.outputs.items() if self._is_here(value)}
        bodies = {part: tuple(body) for part, body in self.bodies.items()}
        return Program(
            self.row,
            self.devices,
            self.stages,
            self.values,
            self.stored,
            self.fed,
            bodies,
            tuple(task for task in tasks if Part(task.phase, task.stage) in bodies),
            outputs,
            self.graph,
        )

    def _is_here(self, value: str) -> bool:
        return self.materialized.values[value].layout.mesh.home in self.homes

    def _body(self, phase: Phase, mesh: Mesh) -> list[Instruction] | None:
        """Where an instruction of a stage goes; None where the stage is not here."""
        if mesh.home not in self.homes:
            return None
        stage = self.materialized.stages.index(mesh)
        return self.bodies[Part(phase, stage) if phase.is_repeated else Part(phase)]

    def _declare(self, name: str) -> str:
        value = self.materialized.values[name]
        tensor = self.graph.tensors[value.tensor]
        self.values[name] = LocalValue(
            name, value.tensor, tensor.dtype, local_shape(self.axes, value.tensor, value.layout), value.layout
        )
        return name

    def add(self, phase: Phase, event: events.Event, label: str) -> None:
        """Append the row's part of one event, which concerns a stage of it."""
        if isinstance(event, events.Transfer):
            self._transfer(phase, event, label)
            return
        body = self._body(phase, self.materialized.meshes_of(event)[0])
        assert body is not None, event
        match event:
            case events.Run():
                body.append(self._compute(event))
            case events.Keep(read=read, write=write, add=add):
                body.append(Keep(read, self._declare(write), add))
            case events.Store(read=read, write=write):
                body.append(Store(read, write))

    # operators

    def _compute(self, event: events.Run) -> Compute:
        operator = self.graph.by_name[event.operator]
        writes = tuple(self._declare(name) for name in event.writes)
        arguments, keywords = self._local_arguments(operator)
        return Compute(operator.name, operator.kind, event.reads, writes, arguments, keywords)

    def _local_arguments(self, operator: Operator) -> tuple[tuple[Any, ...], tuple[tuple[str, Any], ...]]:
        kind = row_of(operator)
        arguments, keywords = list(operator.arguments), dict(operator.keywords)
        placed = self.materialized.placed
        if kind.shape_argument is not None:
            layout = placed.writes(operator)[0]
            arguments[kind.shape_argument] = list(local_shape(self.axes, operator.writes[0], layout))
        for keyword, letter in (kind.starts or {}).items():
            if letter in self.axes.rules[operator.name].indexed:
                offset = self._letter_start(operator, letter)
                keywords |= {keyword: offset} if offset.axes else {}
        for keyword, letter in (kind.lengths or {}).items():
            keywords[keyword] = self._letter_length(operator, letter)
        if kind.boxed:
            layout = placed.writes(operator)[0]
            if any(layout.cuts):
                starts = [_start(layout, dim) for dim in range(len(layout.sizes))]
                keywords |= box_within(keywords, layout, starts, fine_shape(layout))
        return tuple(arguments), tuple(keywords.items())

    def _letter_layout(self, operator: Operator, letter: str) -> tuple[Layout, list[int]]:
        """A layout that holds the letter, and the fine dims of the letter in it."""
        placed, rule = self.materialized.placed, self.axes.rules[operator.name]
        terms = [
            *zip(rule.reads, placed.reads(operator), strict=True),
            *zip(rule.writes, placed.writes(operator), strict=True),
        ]
        for term, layout in terms:
            names = [name for name, _ in self.axes.slots(operator.name, term)]
            if letter in names and layout is not None:
                return layout, [dim for dim, name in enumerate(names) if name == letter]
        raise AssertionError((operator.name, letter))

    def _letter_start(self, operator: Operator, letter: str) -> Offset:
        layout, dims = self._letter_layout(operator, letter)
        return _start(layout, dims[0], prod(layout.sizes[dim] for dim in dims[1:]))

    def _letter_length(self, operator: Operator, letter: str) -> Extent:
        layout, dims = self._letter_layout(operator, letter)
        extent = Extent(1)
        for dim in dims:
            extent = extent * layout.extent(dim)
        return extent

    # steps

    def _transfer(self, phase: Phase, event: events.Transfer, label: str) -> None:
        step, stages = event.step, self.materialized.stages
        gives, takes = (self._body(phase, layout.mesh) for layout in (step.before, step.after))
        if step.kind is StepKind.EXCHANGE:
            write = self._declare(event.write) if takes is not None else ""
            if step.before.mesh == step.after.mesh:
                assert takes is not None
                takes.append(Exchange(step, label, event.read, write, event.reason))
                return
            if gives is not None:
                gives.append(Exchange(step, label, event.read, "", event.reason))
            if takes is not None:
                takes.append(Exchange(step, label, "", write, event.reason))
        elif step.kind is StepKind.SEND:
            if gives is not None:
                gives.append(Send(step, event.read, stages.index(step.after.mesh)))
            if takes is not None:
                sender = stages.index(step.before.mesh)
                takes.append(Receive(step, self._declare(event.write), sender, event.reason))
        elif takes is not None:
            self._within_stage(takes, step, event)

    def _within_stage(self, body: list[Instruction], step: Step, event: events.Transfer) -> None:
        write = self._declare(event.write)
        if step.kind is StepKind.MASK:
            body.append(Mask(step, event.read, write))
            return
        tensor = self.values[write].tensor
        dims = [dim for dim in (step.dim, step.from_dim) if dim >= 0]
        positions = [self._real_dim(tensor, dim) for dim in dims]
        if None not in positions and not (step.kind is StepKind.SLICE and self._uneven_inside(tensor, step)):
            real = {dim: place for dim, place in zip(dims, positions, strict=True) if place is not None}
            inner = self._inner(tensor, step) if step.kind is StepKind.SLICE else 1
            places = real.get(step.dim, -1), real.get(step.from_dim, -1)
            body.append(_on_dims(step, event.read, write, *places, inner, event.reason))
            return
        before = self._reshape(body, event.read, f"{write}|before", step.before, fine=True)
        after = f"{write}|after"
        self.values[after] = LocalValue(
            after, tensor, self.values[write].dtype, fine_shape(step.after), step.after, True
        )
        body.append(_on_dims(step, before, after, step.dim, step.from_dim, 1, event.reason))
        self._reshape(body, after, write, step.after, fine=False)

    def _reshape(self, body: list[Instruction], read: str, write: str, layout: Layout, *, fine: bool) -> str:
        source = self.values[read]
        shape = fine_shape(layout) if fine else local_shape(self.axes, source.tensor, layout)
        self.values[write] = LocalValue(write, source.tensor, source.dtype, shape, layout, fine)
        body.append(Compute("", "reshape", (read,), (write,), (Ref(0), list(shape))))
        return write

    def _uneven_inside(self, tensor: str, step: Step) -> bool:
        """Whether a fine dim inside the real dim that is sliced has pieces of several sizes."""
        position = 0
        for dim in self.axes.dims[tensor]:
            if dim and position == step.dim:
                return any(step.before.extent(position + i).tables for i in range(1, len(dim)))
            position += len(dim)
        return False

    def _inner(self, tensor: str, step: Step) -> int:
        """Local elements of a real dim per element of the fine dim that leads it; even, or this is no slice."""
        position = 0
        for dim in self.axes.dims[tensor]:
            if dim and position == step.dim:
                extents = [step.before.extent(position + i) for i in range(1, len(dim))]
                assert not any(extent.tables for extent in extents), step
                return prod(extent.constant for extent in extents)
            position += len(dim)
        raise AssertionError(step)

    def _real_dim(self, tensor: str, fine: int) -> int | None:
        """The real dim that a fine dim leads, so that pieces of the one are pieces of the other."""
        position = 0
        for real, dim in enumerate(self.axes.dims[tensor]):
            if dim and position == fine:
                return real
            position += len(dim)
        return None


def _on_dims(
    step: Step, read: str, write: str, dim: int, from_dim: int, inner: int, reason: str
) -> Instruction:
    """One step on real dims; `inner` elements of the real dim stand for one of the fine dim."""
    if step.kind is not StepKind.SLICE:
        return Collective(step, read, write, dim, from_dim, reason)
    outer = step.before.cuts[step.dim]
    after = step.after
    length = after.extent(step.dim)
    if outer:  # the piece is a piece of what is held already: even, by the rules of a slice
        count = after.mesh.size(step.axis)
        size = after.piece_sizes(step.dim)[0]
        start = Offset((step.axis,), (size,) * count, inner)
    else:
        start = Offset(after.cuts[step.dim], after.piece_sizes(step.dim), inner)
    return Slice(step, read, write, dim, start, Extent(inner * length.constant, length.tables))


def _start(layout: Layout, dim: int, scale: int = 1) -> Offset:
    """Where a device's piece of a fine dim starts."""
    if not layout.cuts[dim]:
        return Offset((), (), scale)
    return Offset(layout.cuts[dim], layout.piece_sizes(dim), scale)
