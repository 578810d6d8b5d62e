"""Computed where it is read: what depends on no parameter is computed by every stage that reads it, and not sent.

Positions, masks and targets follow from the inputs, which all stages are fed, and from buffers, which they hold.
"""

from dataclasses import replace

from superscaler.ir.axes import Axes
from superscaler.ir.graph import AGAIN, Graph, Operator, Phase, drop_unread
from superscaler.ir.kinds import row_of
from superscaler.ir.mesh import Mesh
from superscaler.ir.tensor import Role
from superscaler.planner.layers import outermost_layer
from superscaler.planner.placement import PlacedGraph, Placement


def computed_where_read(placed: PlacedGraph) -> PlacedGraph:
    """A copy of each such operator for every mesh whose operators read what it writes; unread ones are gone."""
    fixed = _fixed(placed.graph)
    copier = _Copier(placed, {name: placed.placements[name].mesh for name in fixed})
    return copier.copied() if fixed else placed


def _fixed(graph: Graph) -> frozenset[str]:
    """The operators of the forward that depend on inputs and on what no step changes alone."""
    changing = {
        tensor.name for tensor in graph.tensors.values() if tensor.role in (Role.PARAMETER, Role.STATE)
    }
    changing.update(graph.updates, graph.outputs)
    found = set()
    for operator in graph.operators:
        is_early = operator.phase in (Phase.FORWARD, Phase.PREPARE)
        is_pure = not row_of(operator).writes_into
        if is_early and is_pure and changing.isdisjoint((*operator.reads, *operator.writes)):
            found.add(operator.name)
        else:
            changing.update(operator.writes)
    return frozenset(found)


class _Copier:
    def __init__(self, placed: PlacedGraph, homes: dict[str, Mesh]) -> None:
        self.placed, self.homes = placed, homes
        self.graph = placed.graph
        forward = [operator for operator in self.graph.operators if operator.phase is Phase.FORWARD]
        every = [*forward, *self.graph.operators]
        meshes = dict.fromkeys(placed.placements[operator.name].mesh for operator in every)
        self.numbers = {mesh: number for number, mesh in enumerate(meshes)}
        self.operators: list[Operator] = []
        """Copies stand before the layer of their first reader: stages keep their order, and layers stay whole."""
        self.runs: dict[Mesh, tuple[str, int]] = {}
        """The layer whose operators a mesh runs, and where the first of them is."""
        self.copies: dict[str, dict[Mesh, Operator]] = {}
        self.placements = dict(placed.placements)
        self.phases = dict(placed.phases)
        self.reasons = dict(placed.reasons)
        self.tensors = dict(self.graph.tensors)

    def copied(self) -> PlacedGraph:
        for operator in self.graph.operators:
            reads = operator.reads
            if operator.name not in self.homes:
                mesh = self.placements[operator.name].mesh
                self._enter(operator, mesh)
                reads = tuple(self._read(name, mesh) for name in operator.reads)
            self.operators.append(replace(operator, reads=reads))
        if not self.copies:
            return self.placed
        graph = drop_unread(replace(self.graph, tensors=self.tensors, operators=tuple(self.operators)))
        return replace(
            self.placed,
            graph=graph,
            axes=self._axes(),
            placements=self.placements,
            phases=self.phases,
            reasons=self.reasons,
        )

    def _enter(self, operator: Operator, mesh: Mesh) -> None:
        """Note where the layer of an operator begins."""
        layer = outermost_layer(operator.module)
        if not layer or self.runs.get(mesh, ("", 0))[0] != layer:
            self.runs[mesh] = layer, len(self.operators)

    def _insert(self, operator: Operator, mesh: Mesh) -> None:
        """Put a copy before the layer that a mesh runs."""
        place = self.runs[mesh][1]
        self.operators.insert(place, operator)
        self.runs = {other: (layer, start + (start >= place)) for other, (layer, start) in self.runs.items()}

    def _read(self, name: str, mesh: Mesh) -> str:
        """The name of a tensor on a mesh: another, where it is computed there anew."""
        writer = self.graph.writer.get(name)
        if writer is None or self.homes.get(writer.name, mesh) == mesh:
            return name
        copy = self.copies.setdefault(writer.name, {}).get(mesh) or self._copy(writer, mesh)
        return copy.writes[writer.writes.index(name)]

    def _copy(self, operator: Operator, mesh: Mesh) -> Operator:
        name, *writes = (self._name(old, mesh) for old in (operator.name, *operator.writes))
        reads = tuple(self._read(name, mesh) for name in operator.reads)
        copy = replace(operator, name=name, reads=reads, writes=tuple(writes))
        for old, new in zip(operator.writes, writes, strict=True):
            self.tensors[new] = replace(self.tensors[old], name=new)
        self.placements[name] = _moved(self.placements[operator.name], mesh)
        self.phases[name] = self.phases[operator.name]
        self.reasons[name] = (f"computed on {mesh} as well, where it is read: it depends on no parameter",)
        self.copies[operator.name][mesh] = copy
        self._insert(copy, mesh)
        return copy

    def _name(self, name: str, mesh: Mesh) -> str:
        again = AGAIN if name.endswith(AGAIN) else ""
        return f"{name.removesuffix(AGAIN)}/stage{self.numbers[mesh]}{again}"

    def _axes(self) -> Axes:
        axes = self.placed.axes
        dims, letters, rules, shared = (
            dict(axes.dims),
            dict(axes.letters),
            dict(axes.rules),
            dict(axes.shared),
        )
        for name, copies in self.copies.items():
            original = self.graph.by_name[name]
            for copy in copies.values():
                letters[copy.name], rules[copy.name] = letters[name], rules[name]
                shared[copy.name] = shared[name]
                dims |= {new: dims[old] for old, new in zip(original.writes, copy.writes, strict=True)}
        return replace(axes, dims=dims, letters=letters, rules=rules, shared=shared)


def _moved(placement: Placement, mesh: Mesh) -> Placement:
    """The placement on another mesh: cut over those axes that are the same there."""
    here, sizes = placement.mesh, dict(mesh.axes)

    def stay(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in names if name not in here.names or sizes.get(name) == here.size(name))

    cuts = tuple((key, stay(names)) for key, names in placement.cuts)
    return replace(
        placement, mesh=mesh, cuts=tuple(cut for cut in cuts if cut[1]), values=stay(placement.values)
    )
