"""Materialize: data dependencies restored: steps wherever a reader wants another Layout than the writer left.

The result is one global sequence of events per phase. Every program is the part of it that concerns the stages
its devices take part in, so that all see their messages in one order. What outlives a micro-batch (stored tensors,
what is prepared or kept) is held under the `home` of its mesh, and read by every stage on the same devices as it is.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from graphlib import CycleError, TopologicalSorter

from superscaler.errors import PlanError
from superscaler.ir.graph import Graph, Operator, Phase
from superscaler.ir.layout import Layout
from superscaler.ir.mesh import TIME, Mesh
from superscaler.ir.tensor import DTYPE_BYTES, Role
from superscaler.planner.as_updated import brought_together, homes_as_updated, kept_as_updated
from superscaler.planner.cluster import Cluster
from superscaler.planner.order import Order
from superscaler.planner.pipeline import Pipeline
from superscaler.planner.placement import PlacedGraph
from superscaler.planner.rows import Row, find_rows, pipeline_of
from superscaler.planner.stages import stages_in_order
from superscaler.planner.steps import Step, StepKind
from superscaler.planner.transitions import find_path, path_seconds

PHASES = (Phase.PREPARE, Phase.FORWARD, Phase.BACKWARD, Phase.WEIGHT, Phase.UPDATE)


@dataclass(frozen=True, slots=True)
class Value:
    """One logical tensor in one Layout, as programs hold it."""

    name: str
    tensor: str
    layout: Layout


@dataclass(frozen=True, slots=True)
class Run:
    """An operator runs: on values in the layouts its placement asks for."""

    operator: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Transfer:
    """One step turns a value into another of the same tensor."""

    step: Step
    read: str
    write: str
    reason: str


@dataclass(frozen=True, slots=True)
class Keep:
    """A value of one micro-batch is kept for the rest of the step: added up, or the last one kept."""

    read: str
    write: str
    add: bool


@dataclass(frozen=True, slots=True)
class Store:
    """A stored tensor takes its new value."""

    read: str
    write: str


Event = Run | Transfer | Keep | Store


@dataclass(frozen=True)
class MaterializedGraph:
    """A placed graph with every data dependency restored."""

    placed: PlacedGraph
    stages: tuple[Mesh, ...]
    """The device groups, in the order of the forward pass."""
    values: Mapping[str, Value]
    events: Mapping[Phase, tuple[Event, ...]]
    stored: tuple[str, ...]
    """Values that outlive a step (parameters, buffers, states), one per stage and layout that reads them."""
    fed: tuple[str, ...]
    """Values of inputs, one per stage and layout that reads them."""
    outputs: Mapping[str, str]
    """Graph output -> the value that holds it."""

    @property
    def graph(self) -> Graph:
        """The logical graph."""
        return self.placed.graph

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The devices, in groups that run one program each."""
        return find_rows(self.stages)

    @cached_property
    def stage_phases(self) -> tuple[frozenset[Phase], ...]:
        """Per stage the phases among F, B and W in which it has something to do."""
        found: list[set[Phase]] = [set() for _ in self.stages]
        for phase, events in self.events.items():
            for event in events if phase.is_repeated else ():
                for mesh in self.meshes_of(event):
                    found[self.stages.index(mesh)].add(phase)
        return tuple(map(frozenset, found))

    @cached_property
    def pipeline(self) -> Pipeline:
        """What a schedule is made for."""
        edges: dict[tuple[int, int], None] = {}
        for event in self.events[Phase.FORWARD]:
            numbers = [self.stages.index(mesh) for mesh in self.meshes_of(event)]
            if len(numbers) == 2:
                edges[numbers[0], numbers[1]] = None
        return pipeline_of(self.stages, self.rows, tuple(edges), self.stage_phases)

    def meshes_of(self, event: Event) -> tuple[Mesh, ...]:
        """The meshes whose devices take part in an event."""
        if isinstance(event, Run):
            return (self.placed.placements[event.operator].mesh,)
        if isinstance(event, Transfer):
            step = event.step
            crosses = step.kind in (StepKind.SEND, StepKind.EXCHANGE)
            return (
                tuple(dict.fromkeys((step.before.mesh, step.after.mesh))) if crosses else (step.after.mesh,)
            )
        return (self.values[event.read].layout.mesh,)


def materialize(
    placed: PlacedGraph, cluster: Cluster, orders: Iterable[Order[str]] = ()
) -> MaterializedGraph:
    """Insert communication and bring everything into one order.

    Args:
        placed: The graph with its placements complete.
        cluster: What communication costs.
        orders: What a plan script said of the order of operators.

    Raises:
        PlanError: The orders contradict each other or the data, or a layout cannot be reached.
    """
    builder = _Builder(placed, cluster)
    operators = _ordered(placed, orders)
    builder.place_stored(operators)
    for phase in PHASES:
        if phase is Phase.BACKWARD:
            builder.forget(brought_together(placed))
        for operator in operators:
            if placed.phases[operator.name] is phase:
                builder.run(operator, phase)
    builder.finish()
    return MaterializedGraph(
        placed,
        builder.stages,
        builder.values,
        {phase: _keep_at_once(builder.events[phase]) for phase in PHASES},
        tuple(builder.stored),
        tuple(builder.fed),
        builder.outputs,
    )


def _keep_at_once(events: Iterable[Event]) -> tuple[Event, ...]:
    """Keep values as soon as they are made, so that a micro-batch's own gradients need not live to its end."""
    events = list(events)
    keeps = {event.read: event for event in events if isinstance(event, Keep)}
    result: list[Event] = []
    for event in events:
        if isinstance(event, Keep):
            continue
        result.append(event)
        writes = event.writes if isinstance(event, Run) else (event.write,)
        result += [keeps[name] for name in writes if name in keeps]
    assert len(result) == len(events)
    return tuple(result)


def _ordered(placed: PlacedGraph, orders: Iterable[Order[str]]) -> tuple[Operator, ...]:
    """Graph order, changed as little as the script's orders demand."""
    graph = placed.graph
    # what is computed on other devices, where it is read, is gone from these
    orders = [order for order in orders if {order.first, order.then} <= graph.by_name.keys()]
    if not orders:
        return graph.operators
    position = {operator.name: i for i, operator in enumerate(graph.operators)}
    sorter: TopologicalSorter[str] = TopologicalSorter({name: set() for name in position})
    for operator in graph.operators:
        for name in operator.reads:
            if name in graph.writer:
                sorter.add(operator.name, graph.writer[name].name)
    for order in _orders_that_hold(placed, orders):
        sorter.add(order.then, order.first)
    try:
        sorter.prepare()
    except CycleError as error:
        cycle = error.args[1]
        lines = dict.fromkeys(order.where for order in orders if {order.first, order.then} <= {*cycle})
        raise PlanError(
            "the orders contradict each other or the data: " + " before ".join(map(repr, cycle)),
            where=", ".join(filter(None, lines)),
            remedy="drop one of the p.order(...) calls that make this cycle",
        ) from None
    ready: list[str] = []
    result: list[Operator] = []
    while sorter.is_active():
        ready = sorted([*ready, *sorter.get_ready()], key=position.__getitem__)
        name = ready.pop(0)
        result.append(graph.by_name[name])
        sorter.done(name)
    return tuple(result)


def _orders_that_hold(placed: PlacedGraph, orders: list[Order[str]]) -> list[Order[str]]:
    """The orders of operators that share devices: of each call at least one, and none against the phases."""
    holding = []
    for order in orders:
        if placed.placements[order.first].mesh != placed.placements[order.then].mesh:
            continue
        phases = placed.phases[order.first], placed.phases[order.then]
        if PHASES.index(phases[0]) > PHASES.index(phases[1]):
            raise PlanError(
                f"{order.first!r} runs in phase {phases[0]}, after {order.then!r} in phase {phases[1]}: "
                "it cannot come before it",
                where=order.where,
                remedy='order operators of one phase: selection.only("F")',
            )
        holding.append(order)
    obeyed = {order.where for order in holding}
    idle = [order for order in orders if order.where not in obeyed]
    if idle:
        raise PlanError(
            f"{idle[0].first!r} and {idle[0].then!r} share no device: only data orders them",
            where=idle[0].where,
            remedy="order operators that are placed on the same devices",
        )
    return holding


@dataclass
class _Version:
    """A value and the phase that makes it."""

    value: str
    phase: Phase


@dataclass
class _Builder:
    placed: PlacedGraph
    cluster: Cluster
    stages: tuple[Mesh, ...] = ()
    values: dict[str, Value] = field(default_factory=dict)
    events: dict[Phase, list[Event]] = field(default_factory=lambda: {phase: [] for phase in PHASES})
    versions: dict[str, dict[Layout, _Version]] = field(default_factory=dict)
    kept: dict[str, dict[Layout, _Version]] = field(default_factory=dict)
    written: dict[str, _Version] = field(default_factory=dict)
    stored: list[str] = field(default_factory=list)
    fed: list[str] = field(default_factory=list)
    outputs: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.graph = self.placed.graph
        self.stages = stages_in_order(self.placed)

    # where stored tensors and inputs live

    def place_stored(self, operators: Iterable[Operator]) -> None:
        """Give every stored tensor and input a value per stage and layout that reads it."""
        wanted: dict[str, dict[Layout, bool]] = {}
        for operator in operators:
            late = self.placed.phases[operator.name] is Phase.UPDATE
            for name, layout in zip(operator.reads, self.placed.reads(operator), strict=True):
                if layout is not None and name not in self.graph.writer:
                    home = layout.at_home
                    wanted.setdefault(name, {})
                    wanted[name][home] = wanted[name].get(home, True) and late
        for name, tensor in self.graph.tensors.items():
            if name not in wanted:
                continue
            layouts = [_unmasked(layout) for layout, late in wanted[name].items() if not late]
            if not layouts:
                layouts = [_unmasked(layout) for layout in wanted[name]]
            if name in self.placed.stored_as_updated:
                layouts = homes_as_updated(self.placed, name, layouts)
            is_fed = tensor.role is Role.INPUT
            homes = list(dict.fromkeys(layouts)) if is_fed else _most_replicated(layouts)
            for number, layout in enumerate(homes):
                value = self._new_value(name if number == 0 else f"{name}|{number}", name, layout)
                (self.fed if is_fed else self.stored).append(value)
                self.versions.setdefault(name, {})[layout] = _Version(value, Phase.PREPARE)

    def _new_value(self, name: str, tensor: str, layout: Layout) -> str:
        unique, number = name, 1
        while unique in self.values:
            number += 1
            unique = f"{name}{number}"
        self.values[unique] = Value(unique, tensor, layout)
        return unique

    # events

    def run(self, operator: Operator, phase: Phase) -> None:
        """Append an operator, and before it whatever brings its reads into the layouts it wants."""
        reads = tuple(
            name if layout is None else self._obtain(name, _held_in(phase, layout), phase, operator)
            for name, layout in zip(operator.reads, self.placed.reads(operator), strict=True)
        )
        writes = []
        for name, layout in zip(operator.writes, self.placed.writes(operator), strict=True):
            layout = _held_in(phase, layout)
            value = self._new_value(name, name, layout)
            writes.append(value)
            self.written[name] = _Version(value, phase)
            self.versions.setdefault(name, {})[layout] = self.written[name]
        self.events[phase].append(Run(operator.name, reads, tuple(writes)))
        for name in operator.writes:
            if phase is Phase.BACKWARD and name in self.placed.kept_as_updated:
                self._bring_to_update(name)

    def _bring_to_update(self, gradient: str) -> None:
        """Bring a micro-batch's gradient into the layout it is kept in."""
        layout = kept_as_updated(self.placed, gradient, self.values[self.written[gradient].value].layout)
        if layout is not None:
            self._obtain(gradient, layout, Phase.BACKWARD, None)
            self.written[gradient] = self.versions[gradient][layout]

    def forget(self, tensors: Iterable[str]) -> None:
        """Forget what the forward brought together, so that the backward does so again."""
        for name in tensors:
            self.versions[name] = {
                layout: known
                for layout, known in self.versions[name].items()
                if known.phase is Phase.PREPARE or known is self.written.get(name)
            }

    def finish(self) -> None:
        """Store updated values in every home, and bring the outputs into whole values."""
        homes = {}
        for value in self.stored:
            homes.setdefault(self.values[value].tensor, []).append(value)
        for name, fresh in self.graph.updates.items():
            for home in homes.get(name, ()):
                read = self._obtain(fresh, self.values[home].layout, Phase.UPDATE, None)
                self.events[Phase.UPDATE].append(Store(read, home))
        for name in self.graph.outputs:
            self.outputs[name] = self._output(name)

    def _output(self, name: str) -> str:
        version = self.written.get(name) or next(iter(self.versions[name].values()))
        layout = self.values[version.value].layout
        whole = replace(layout, partial=(), reducer="sum")
        is_cut = any(TIME in cut for cut in layout.cuts)
        late = not is_cut and (self.graph.is_training or TIME in layout.partial)
        phase = Phase.UPDATE if late else version.phase
        return self._obtain(name, _held_in(phase, whole), phase, None)

    def _obtain(self, tensor: str, target: Layout, phase: Phase, reader: Operator | None) -> str:
        """The value of `tensor` in layout `target`, made with the fewest steps if it is not there yet."""
        versions = self._kept(tensor, reader) if phase is Phase.UPDATE else self.versions[tensor]
        for layout in (target, target.at_home):
            if layout in versions and (layout == target or self._is_lasting(versions[layout])):
                return versions[layout].value
        source, path = self._cheapest(tensor, versions, target, reader)
        for step in path:
            source = self._transfer(tensor, versions, source, step, phase, reader)
        return source.value

    def _kept(self, tensor: str, reader: Operator | None) -> dict[Layout, _Version]:
        """The versions of a tensor that exist once all micro-batches have run."""
        if tensor not in self.kept:
            made = self.written.get(tensor)
            if made is not None and made.phase.is_repeated:
                self.kept[tensor] = self._keep(tensor, made, reader)
            else:
                # what a micro-batch made of a stored tensor is gone when its micro-batch is over
                lasting = (Phase.PREPARE, Phase.UPDATE)
                versions = self.versions[tensor].items()
                self.kept[tensor] = {layout: known for layout, known in versions if known.phase in lasting}
        return self.kept[tensor]

    def _keep(self, tensor: str, made: _Version, reader: Operator | None) -> dict[Layout, _Version]:
        layout = self.values[made.value].layout
        is_cut = any(TIME in cut for cut in layout.cuts)
        if is_cut or (TIME in layout.partial and layout.reducer != "sum"):
            raise PlanError(
                f"{reader.name if reader else 'the output'!r} needs {tensor!r} of every micro-batch at once",
                where=reader.source if reader else self.graph.writer[tensor].source,
                remedy="use micro_batches=1",
            )
        whole = layout.without_time().at_home
        value = self._new_value(f"{tensor}|kept", tensor, whole)
        self.events[made.phase].append(Keep(made.value, value, add=TIME in layout.partial))
        return {whole: _Version(value, Phase.UPDATE)}

    def _cheapest(
        self, tensor: str, versions: dict[Layout, _Version], target: Layout, reader: Operator | None
    ) -> tuple[_Version, tuple[Step, ...]]:
        width = DTYPE_BYTES[self.graph.tensors[tensor].dtype]
        first, *others = versions
        candidates = [first, *(layout for layout in others if layout.mesh.home == target.mesh.home)]
        best: tuple[float, _Version, tuple[Step, ...]] | None = None
        problem: PlanError | None = None
        for layout in candidates:
            version = versions[layout]
            if layout.mesh.home == target.mesh.home and self._is_lasting(version):
                layout = layout.on(target.mesh)
            try:
                path = find_path(layout, target, width, self.cluster)
            except PlanError as error:
                problem = error
                continue
            seconds = path_seconds(path, width, self.cluster)
            if best is None or seconds < best[0]:
                best = seconds, version, path
        if best is None:
            assert problem is not None
            raise PlanError(
                f"{reader.name if reader else 'the output'!r} cannot read {tensor!r}: {problem.what}",
                where=reader.source if reader else "",
                remedy=problem.remedy,
            )
        return best[1], best[2]

    def _transfer(
        self,
        tensor: str,
        versions: dict[Layout, _Version],
        source: _Version,
        step: Step,
        phase: Phase,
        reader: Operator | None,
    ) -> _Version:
        """Append one step, in the earliest phase that keeps every pair of stages in step."""
        if step.after in versions:
            return versions[step.after]
        at = self._phase_of(source, step, phase)
        value = self._new_value(f"{tensor}|{step.kind}", tensor, step.after)
        reason = (
            f"{reader.name} reads {tensor} as {step.after}" if reader else f"{tensor} is kept as {step.after}"
        )
        self.events[at].append(Transfer(step, source.value, value, reason))
        versions[step.after] = _Version(value, at)
        return versions[step.after]

    def _is_lasting(self, version: _Version) -> bool:
        """Whether a value outlives its micro-batch."""
        return not version.phase.is_repeated

    def _phase_of(self, source: _Version, step: Step, phase: Phase) -> Phase:
        if source.phase is Phase.PREPARE:
            stored = source.value in self.stored or source.value in self.fed
            uses_time = TIME in step.after.partial or any(TIME in cut for cut in step.after.cuts)
            return phase if stored or uses_time else Phase.PREPARE
        if source.phase is Phase.FORWARD and phase is Phase.BACKWARD and step.before.mesh != step.after.mesh:
            later = self.stages.index(step.after.mesh) > self.stages.index(step.before.mesh)
            return Phase.FORWARD if later else Phase.BACKWARD
        return phase


def _held_in(phase: Phase, layout: Layout) -> Layout:
    """The layout of a value that a phase makes or reads: what outlives a micro-batch is held at home."""
    return layout if phase.is_repeated else layout.at_home


def _unmasked(layout: Layout) -> Layout:
    """A stored tensor or input is held whole in value, also where a reader wants summands of it."""
    return replace(layout, partial=(), reducer="sum") if layout.partial else layout


def _most_replicated(layouts: Iterable[Layout]) -> list[Layout]:
    """Of layouts on one mesh, those from which the others follow by slicing."""
    distinct = list(dict.fromkeys(layouts))

    def contains(outer: Layout, inner: Layout) -> bool:
        return (
            outer != inner
            and outer.mesh == inner.mesh
            and not outer.pieces
            and not inner.pieces
            and all(few == many[: len(few)] for few, many in zip(outer.cuts, inner.cuts, strict=True))
        )

    return [layout for layout in distinct if not any(contains(outer, layout) for outer in distinct)]
