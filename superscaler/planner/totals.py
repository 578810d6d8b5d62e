"""Totals: a sum of many numbers is taken where they are made, so that few numbers travel.

Numbers of one stage that are summands over the same mesh axes are added up first, then all of the stage (those that
are whole over an axis count on one device of it), and this sum is all-reduced once per axis; then the stages' sums
are sent to one of them and added.
"""

from dataclasses import dataclass, replace

from superscaler.ir.axes import Axes
from superscaler.ir.graph import Graph, Operator, Ref
from superscaler.ir.kinds import rule_of
from superscaler.ir.mesh import Mesh
from superscaler.planner.placement import PlacedGraph, Placement

TOTAL = "total"
"""The kind of operator that adds up numbers."""


def split_totals(placed: PlacedGraph) -> PlacedGraph:
    """Split every total into totals per stage, and per set of mesh axes over which its numbers are summands."""
    if not any(operator.kind == TOTAL for operator in placed.graph.operators):
        return placed
    splitter = _Splitter(placed)
    for operator in placed.graph.operators:
        splitter.add(operator)
    return splitter.finished()


@dataclass(frozen=True, slots=True)
class _Number:
    """A number, where it is made, and the mesh axes over which it is a summand."""

    tensor: str
    mesh: Mesh
    partial: tuple[str, ...]


class _Splitter:
    def __init__(self, placed: PlacedGraph) -> None:
        self.placed = placed
        self.tensors = dict(placed.graph.tensors)
        self.operators: list[Operator] = []
        self.placements = dict(placed.placements)
        self.phases = dict(placed.phases)
        self.reasons = dict(placed.reasons)

    def finished(self) -> PlacedGraph:
        graph = replace(self.placed.graph, tensors=self.tensors, operators=tuple(self.operators))
        axes = _with_numbers(self.placed.axes, graph)
        return replace(
            self.placed,
            graph=graph, axes=axes, placements=self.placements, phases=self.phases, reasons=self.reasons,
        )  # fmt: skip

    def add(self, operator: Operator) -> None:
        if operator.kind != TOTAL:
            self.operators.append(operator)
            return
        by_stage: dict[Mesh, list[_Number]] = {}
        for name in operator.reads:
            number = self._number(name)
            by_stage.setdefault(number.mesh, []).append(number)
        here = self.placements[operator.name].mesh
        sums = {mesh: self._of_stage(operator, mesh, numbers) for mesh, numbers in by_stage.items()}
        if list(sums) == [here]:
            self._total(operator, operator.name, here, sums[here])
            return
        numbers = [
            of_stage[0]
            if len(of_stage) == 1
            else self._total(operator, f"{operator.name}/{i}", mesh, of_stage)
            for i, (mesh, of_stage) in enumerate(sums.items())
        ]
        self._total(operator, operator.name, here, numbers)

    def _number(self, name: str) -> _Number:
        writer = self.placed.graph.writer[name]
        layout = dict(zip(writer.writes, self.placed.writes(writer), strict=True))[name]
        return _Number(name, layout.mesh, layout.partial)

    def _of_stage(self, operator: Operator, mesh: Mesh, numbers: list[_Number]) -> list[_Number]:
        """A number per set of axes over which the stage's numbers are summands."""
        groups: dict[tuple[str, ...], list[_Number]] = {}
        for number in numbers:
            groups.setdefault(number.partial, []).append(number)
        if len(groups) == 1:
            return numbers
        return [
            group[0]
            if len(group) == 1
            else self._total(operator, "/".join([operator.name, *(partial or ("whole",))]), mesh, group)
            for partial, group in groups.items()
        ]

    def _total(self, operator: Operator, name: str, mesh: Mesh, numbers: list[_Number]) -> _Number:
        """Append a total; it passes on summands over every axis over which one of its numbers is a summand."""
        while name in self.placements and name != operator.name:
            name = f"{name}_"
        passed = tuple(sorted({axis for number in numbers for axis in number.partial if number.mesh == mesh}))
        if any(number.mesh != mesh for number in numbers):
            passed = ()
        reads = tuple(number.tensor for number in numbers)
        refs = tuple(Ref(index) for index in range(len(reads)))
        self.tensors[name] = replace(self.tensors[operator.writes[0]], name=name)
        self.operators.append(replace(operator, name=name, reads=reads, writes=(name,), arguments=(refs,)))
        self.placements[name] = Placement(mesh, (), passed)
        self.phases[name] = self.phases[operator.name]
        why = f"adds up {len(reads)} numbers" + (f", summands over {', '.join(passed)}" if passed else "")
        self.reasons[name] = (*self.reasons.get(operator.name, ()), why)
        return _Number(name, mesh, passed)


def _with_numbers(axes: Axes, graph: Graph) -> Axes:
    """The axes of a graph to which totals of numbers were added: they have none."""
    totals = [operator for operator in graph.operators if operator.kind == TOTAL]
    return replace(
        axes,
        dims={**axes.dims, **{operator.writes[0]: () for operator in totals}},
        letters={**axes.letters, **{operator.name: {} for operator in totals}},
        rules={**axes.rules, **{operator.name: rule_of(operator, graph)[0] for operator in totals}},
    )
