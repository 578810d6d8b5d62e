"""The cheapest chain of steps from one Layout to another, as a shortest path in the graph of layouts."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from math import prod

import networkx as nx

from superscaler.errors import PlanError
from superscaler.ir.layout import Layout
from superscaler.ir.mesh import TIME
from superscaler.planner.cluster import Cluster
from superscaler.planner.step_cost import step_seconds
from superscaler.planner.steps import (
    Step,
    StepKind,
    apply,
    exchange_fits,
    plain,
    same_shape,
    space_partial,
    time_agrees,
    uses_time,
)


@lru_cache(maxsize=1 << 16)
def find_path(
    source: Layout, target: Layout, num_bytes_per_element: int, cluster: Cluster
) -> tuple[Step, ...]:
    """The fastest chain of steps that turns `source` into `target`; empty where they place values equally.

    The layouts within the steps are `plain`: the chain starts at ``plain(source)`` and ends at
    ``plain(target)``, where a layout that does not cut time takes the other's number of micro-batches.

    Raises:
        PlanError: when no chain exists, saying what the two sides disagree about.
    """
    source, target = comparable(source, target)
    if source == target:
        return ()
    narrow = _Search.between(source, target)
    # where what lies as the target wants it bars the way, it moves as well
    for search in (narrow, replace(narrow, moving=narrow.names)):
        graph = search.graph(num_bytes_per_element, cluster)
        try:
            nodes = nx.dijkstra_path(graph, search.key(source), search.key(target))
        except (nx.NetworkXNoPath, nx.NodeNotFound):
            continue
        return tuple(graph.edges[edge]["step"] for edge in pairwise(nodes))
    raise _no_path(source, target)


def path_seconds(steps: Iterable[Step], num_bytes_per_element: int, cluster: Cluster) -> float:
    """How long a chain takes per training step, in seconds, when nothing overlaps it."""
    return sum(step_seconds(step, num_bytes_per_element, cluster) for step in steps)


def comparable(source: Layout, target: Layout) -> tuple[Layout, Layout]:
    """Both layouts in `plain` form, with one number of micro-batches.

    Raises:
        PlanError: when the shapes differ, or both are cut into different numbers of micro-batches.
    """
    source, target = plain(source), plain(target)
    if source.sizes != target.sizes:
        raise PlanError(f"a value of shape {source.sizes} is read as {target.sizes}")
    counts = source.mesh.micro_batches, target.mesh.micro_batches
    if counts[0] == counts[1]:
        return source, target
    if not uses_time(source):
        return replace(source, mesh=replace(source.mesh, micro_batches=counts[1])), target
    if not uses_time(target):
        return source, replace(target, mesh=replace(target.mesh, micro_batches=counts[0]))
    raise PlanError(
        f"the value is written in {counts[0]} micro-batches but read in {counts[1]}",
        remedy="use one number of micro-batches for the writer and the reader",
    )


@dataclass(frozen=True)
class _Search:
    """Which layouts are worth a visit between a source and a target.

    Axes that already lie where the target wants them stay; others go only where the target has them, or
    to one spare dim. That leaves tens of states, where all ways to place the axes would be thousands.
    """

    source: Layout
    target: Layout
    moving: frozenset[str]
    """The axes that may change their place."""
    spare: dict[str, int]
    """Per axis a fine dim that it cuts evenly, to hold it on the way."""

    @staticmethod
    def between(source: Layout, target: Layout) -> "_Search":
        """Decide which axes move."""
        fixed: set[str] = set()
        if same_shape(source.mesh, target.mesh):
            for dim, (given, wanted) in enumerate(zip(source.cuts, target.cuts, strict=True)):
                if given == wanted and _pieces(source, dim) != _pieces(target, dim):
                    continue
                for one, other in zip(given, wanted, strict=False):
                    if one != other:
                        break
                    fixed.add(one)
            if source.reducer == target.reducer:
                fixed.update(set(source.partial) & set(target.partial))
            if source.mesh == target.mesh:
                fixed.update(set(source.replicated) & set(target.replicated))
        search = _Search(source, target, frozenset(), _spare_dims(source, target))
        return replace(search, moving=search.names - fixed)

    @property
    def names(self) -> frozenset[str]:
        """All axes that are on either side."""
        meshes = (self.source.mesh, self.target.mesh)
        return frozenset(name for mesh in meshes for name, size in mesh.axes if size > 1)

    def key(self, layout: Layout) -> tuple:
        """What tells the states of this search apart, at less cost than hashing whole meshes."""
        arrived = layout.mesh == self.target.mesh
        return arrived, layout.cuts, layout.partial, layout.reducer, layout.pieces

    def graph(self, bytes_per_element: int, cluster: Cluster) -> nx.DiGraph:
        """The layouts worth a visit, and the steps between them, weighted in seconds."""
        graph = nx.DiGraph()

        def explore(starts: Iterable[Layout], propose) -> list[Layout]:
            """Add what can be reached from `starts`; return it."""
            reached = {self.key(start): start for start in starts}
            waiting = list(reached.values())
            while waiting:
                layout = waiting.pop()
                for step in propose(layout):
                    add(step)
                    key = self.key(step.after)
                    if key not in reached:
                        reached[key] = step.after
                        waiting.append(step.after)
            return list(reached.values())

        def add(step: Step) -> None:
            seconds = step_seconds(step, bytes_per_element, cluster)
            edge = self.key(step.before), self.key(step.after)
            if edge[0] != edge[1] and (not graph.has_edge(*edge) or graph.edges[edge]["weight"] > seconds):
                graph.add_edge(*edge, weight=seconds, step=step)

        def exchange(starts: list[Layout], ends: list[Layout]) -> None:
            for start in starts:
                for end in ends:
                    # devices that hold summands add them up by a collective, which can be started early
                    sums_at_home = start.mesh == end.mesh and space_partial(start) != space_partial(end)
                    if exchange_fits(start, end) and not sums_at_home:
                        add(Step(StepKind.EXCHANGE, start, end))

        settled = (space_partial(self.source), space_partial(self.target), ())
        exits = [
            layout for layout in explore([self.source], self._reductions) if space_partial(layout) in settled
        ]
        entries = self._entries()
        if same_shape(self.source.mesh, self.target.mesh):
            explore([self.source], self._steps)
        explore(entries, self._arrivals)
        exchange(exits, entries)
        for landing in self._landings():
            exchange(exits, [landing])
            exchange(explore([landing], self._reductions), entries)
        return graph

    def _steps(self, layout: Layout) -> Iterator[Step]:
        """Every step worth trying where source and target mesh have one shape."""
        yield from self._reductions(layout)
        yield from self._arrivals(layout)
        for dim, cut in enumerate(layout.cuts):
            for place in self._places(cut[-1]) if cut and cut[-1] in self.moving else ():
                yield from _try(StepKind.ALL_TO_ALL, layout, cut[-1], place, dim)
        for axis in layout.replicated:
            for dim in self._places(axis) if axis in self.moving else ():
                yield from _try(StepKind.SLICE, layout, axis, dim, target=self.target)
        if layout.mesh != self.target.mesh:
            after = apply(StepKind.SEND, layout, target=self.target)
            if after is not None:
                yield Step(StepKind.SEND, layout, after)

    def _reductions(self, layout: Layout) -> Iterator[Step]:
        """The steps that make summands whole, and those that enter the target's micro-batches."""
        if TIME in layout.partial and TIME not in self.target.partial:
            yield from _try(StepKind.ACCUMULATE, layout, TIME)
        if not uses_time(layout):
            for dim, cut in enumerate(self.target.cuts):
                if TIME in cut:
                    yield from _try(StepKind.SLICE, layout, TIME, dim, target=self.target)
        for axis in space_partial(layout):
            if axis in self.moving:
                yield from _try(StepKind.ALL_REDUCE, layout, axis)
                for dim in self._places(axis):
                    yield from _try(StepKind.REDUCE_SCATTER, layout, axis, dim)

    def _arrivals(self, layout: Layout) -> Iterator[Step]:
        """The steps that join pieces, and those that make the target's summands of whole values."""
        for dim, cut in enumerate(layout.cuts):
            if cut and cut[-1] in self.moving:
                yield from _try(StepKind.ALL_GATHER, layout, cut[-1], dim)
        for axis in layout.replicated:
            if axis in self.target.partial:
                yield from _try(StepKind.MASK, layout, axis)

    def _entries(self) -> list[Layout]:
        """Where an exchange may land: at the target, or a local step or gather away from it.

        Landing on pieces of what the target replicates spares sending the same elements many times.
        """
        entries = [self.target]
        if self.target.reducer == "sum" and space_partial(self.target):
            partial = tuple(axis for axis in self.target.partial if axis == TIME)
            entries.append(replace(self.target, partial=partial))
        if self.source.mesh == self.target.mesh or same_shape(self.source.mesh, self.target.mesh):
            return entries
        for entry in list(entries):
            thinner = entry
            for axis in self.target.replicated:
                for start in (entry, thinner):
                    for step in _try(StepKind.SLICE, start, axis, self.spare.get(axis, -1)):
                        entries.append(step.after)
                thinner = entries[-1]
        return entries

    def _landings(self) -> Iterator[Layout]:
        """Where a value that only the target cuts in time is whole along that dim, to be sliced there."""
        for dim, cut in enumerate(self.target.cuts):
            if TIME in cut and not any(TIME in given for given in self.source.cuts):
                cuts = self.target.cuts[:dim] + ((),) + self.target.cuts[dim + 1 :]
                yield replace(self.target, cuts=cuts, partial=(), reducer="sum", pieces=())

    def _places(self, axis: str) -> list[int]:
        """The fine dims that `axis` may come to cut: the target's, and the spare one."""
        places = [dim for dim, cut in enumerate(self.target.cuts) if axis in cut]
        if axis in self.spare and self.spare[axis] not in places:
            places.append(self.spare[axis])
        return places


def _spare_dims(source: Layout, target: Layout) -> dict[str, int]:
    """Per axis a fine dim that it cuts evenly; uncut at both ends, and fit for all axes, where one is.

    No dim whose size varies is among them: that it comes out even would be one more thing to ask of a run.
    """
    meshes = (source.mesh, target.mesh)
    sizes = {name: size for mesh in meshes for name, size in mesh.axes if size > 1}
    together = prod(sizes.values()) * max(mesh.micro_batches for mesh in meshes)
    dims = sorted(range(len(source.sizes)), key=lambda dim: bool(source.cuts[dim] or target.cuts[dim]))
    spare = {}
    for axis, size in sizes.items():
        fitting = [dim for dim in dims if source.sizes[dim] and source.sizes[dim] % size == 0]
        if fitting:
            # the first that is fit for all; the first of all where none is
            spare[axis] = max(fitting, key=lambda dim: source.sizes[dim] % together == 0)
    return spare


def _pieces(layout: Layout, dim: int) -> tuple[int, ...] | None:
    return layout.pieces[dim] if layout.pieces else None


def _try(
    kind: StepKind, layout: Layout, axis: str, dim: int = -1, from_dim: int = -1, target: Layout | None = None
) -> Iterator[Step]:
    """The step, where it is allowed; with a `target`, a slice that completes a cut takes its pieces."""
    if kind is StepKind.SLICE and dim < 0:
        return
    pieces = None
    if target is not None and target.cuts[dim] == layout.cuts[dim] + (axis,):
        pieces = _pieces(target, dim)
    after = apply(kind, layout, axis, dim, from_dim, pieces=pieces)
    if after is not None:
        yield Step(kind, layout, after, axis, dim, from_dim)


def _no_path(source: Layout, target: Layout) -> PlanError:
    what = f"no way from {source} over {source.mesh} to {target} over {target.mesh}"
    if uses_time(source) and not time_agrees(source, target):
        given = "cut into micro-batches" if TIME not in source.partial else "summed over micro-batches"
        if not uses_time(target):
            fault = f"the value is {given} here but read whole there"
        else:
            fault = f"the value is {given} here, and otherwise there"
        return PlanError(
            f"{fault}: {what}",
            remedy="cut the same dim of writer and reader into micro-batches, or neither",
        )
    if space_partial(target):
        return PlanError(
            f"the reader wants summands ({target.reducer}) that the writer does not have: {what}",
            remedy="let the reader take whole values",
        )
    return PlanError(
        f"{what}: no chain of collectives, and no exchange, combines {source.reducer}",
        remedy="cut the reader along the same axes as the writer, or into even pieces",
    )
