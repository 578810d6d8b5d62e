"""Placement: how one operator is cut and which devices run the pieces; the Layouts of its tensors."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from superscaler.ir.axes import Axes, Axis
from superscaler.ir.graph import Graph, Operator, Phase
from superscaler.ir.kinds import is_linear, linear_reads
from superscaler.ir.layout import Layout
from superscaler.ir.mesh import Mesh
from superscaler.ir.rules import Term
from superscaler.ir.tensor import Role
from superscaler.planner.steps import plain


@dataclass(frozen=True, slots=True)
class Placement:
    """The cuts of one operator over one mesh; a mesh axis that cuts nothing replicates the operator."""

    mesh: Mesh
    cuts: tuple[tuple[tuple[str, int], tuple[str, ...]], ...] = ()
    """((letter, axis index), the mesh axes that cut it, major to minor)."""
    values: tuple[str, ...] = ()
    """Mesh axes over which a linear operator maps summands to summands."""
    pieces: tuple[tuple[int, tuple[int, ...]], ...] = ()
    """(axis index, sizes of its pieces) where a plan chose them."""

    @property
    def used(self) -> tuple[str, ...]:
        """Mesh axes that do not replicate the operator."""
        return (*(axis for _, axes in self.cuts for axis in axes), *self.values)


@dataclass(frozen=True)
class PlacedGraph:
    """A graph whose operators know how they are cut, where they run and in which phase."""

    graph: Graph
    axes: Axes
    placements: Mapping[str, Placement]
    phases: Mapping[str, Phase]
    """Operator -> the phase it runs in: its own, or a later one if it needs a sum over micro-batches."""
    reasons: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Operator -> why it is cut and placed as it is, one sentence each."""
    kept_as_updated: frozenset[str] = frozenset()
    """Gradients that are brought into the layout their update reads as soon as a micro-batch makes them: all where
    there is one micro-batch."""
    stored_as_updated: frozenset[str] = frozenset()
    """Parameters that are stored in the layout their update reads, and brought together where they are read."""
    on_host: frozenset[str] = frozenset()
    """Stored tensors that lie in host memory, and are fetched where they are read."""

    def reads(self, operator: Operator) -> tuple[Layout | None, ...]:
        """The Layout in which an operator reads each of its tensors; None for the number of the step."""
        return self._layouts[operator.name][0]

    def writes(self, operator: Operator) -> tuple[Layout, ...]:
        """The Layout in which an operator writes each of its tensors."""
        return self._layouts[operator.name][1]

    @cached_property
    def _layouts(self) -> dict[str, tuple[tuple[Layout | None, ...], tuple[Layout, ...]]]:
        table = {}
        for operator in self.graph.operators:
            rule, placement = self.axes.rules[operator.name], self.placements[operator.name]
            whole, summed = replace(placement, values=()), linear_reads(operator)
            reads = tuple(
                None
                if self.graph.tensors[name].role is Role.STEP
                else operand_layout(
                    self.axes, operator, name, term, placement if i in summed else whole, written=False
                )
                for i, (name, term) in enumerate(zip(operator.reads, rule.reads, strict=True))
            )
            writes = tuple(
                operand_layout(self.axes, operator, name, term, placement, written=True)
                for name, term in zip(operator.writes, rule.writes, strict=True)
            )
            table[operator.name] = reads, writes
        return table


def operand_layout(
    axes: Axes, operator: Operator, tensor: str, term: Term, placement: Placement, *, written: bool
) -> Layout:
    """The Layout of `tensor`, which one term of an operator's rule stands for.

    A letter that is cut and stands in the term cuts that dim; one that does not leaves a written tensor (or
    an additive read) value-split, and another read replicated.
    """
    slots = _slots(axes, operator, tensor, term)
    fine = axes.fine(tensor)
    cut = dict(placement.cuts)
    chosen = dict(placement.pieces)
    cuts = tuple(cut.get((letter, axis.index), ()) for letter, axis in slots)
    partial = list(placement.values)
    if written or term.additive:
        result = slots if written else axes.slots(operator.name, axes.rules[operator.name].writes[0])
        present = {(letter, axis.index) for letter, axis in result}
        partial += [name for key, names in placement.cuts if key not in present for name in names]
    pieces = tuple(
        chosen.get(axis.index) if cut_ else None for (_, axis), cut_ in zip(slots, cuts, strict=True)
    )
    sizes = tuple(axis.size for axis in fine)
    return plain(
        Layout(
            placement.mesh, sizes, cuts, tuple(sorted(partial)), term.reducer, pieces if any(pieces) else ()
        )
    )


def _slots(axes: Axes, operator: Operator, tensor: str, term: Term) -> tuple[tuple[str, Axis], ...]:
    """Per fine dim of a tensor the letter and the axis; no letter in a dim where the rule does not nest."""
    slots: list[tuple[str, Axis]] = []
    for parts, letters in zip(axes.dims[tensor], term.dims, strict=True):
        own = [(letter, axis) for letter in letters for axis in axes.letters[operator.name][letter]]
        nest = tuple(axis for _, axis in own) == parts
        slots += own if nest else [("", axis) for axis in parts]
    return tuple(slots)


def letters_of(axes: Axes, operator: Operator, axis: Axis) -> tuple[str, ...]:
    """The letters of an operator that hold `axis` and may be cut with it: one, or none where two hold it."""
    return () if axis in axes.shared[operator.name] else letters_to_choose(axes, operator, axis)


def letters_to_choose(axes: Axes, operator: Operator, axis: Axis) -> tuple[str, ...]:
    """The letters of an operator that hold `axis` and may be cut, if it is said which."""
    return tuple(
        letter
        for letter, parts in axes.letters[operator.name].items()
        if axis in parts and axes.cuttable(operator.name, letter, axis)
    )


def passes_summands(operator: Operator, graph: Graph) -> bool:
    """Whether summands may flow through the operator unsummed: it is linear, and nothing else needs them summed.

    One that is linear in a part of its reads only must not make them larger, as a table's gradient would be.
    """
    reads = [operator.reads[i] for i in linear_reads(operator)]
    grows = not is_linear(operator) and _elements(graph, operator.writes) > _elements(graph, reads)
    return (
        bool(reads)
        and not grows
        and all(
            is_linear(reader) or reader == operator
            for name in dict.fromkeys(reads)
            for reader in graph.readers[name]
        )
    )


def _elements(graph: Graph, names: Iterable[str]) -> int:
    return sum(int(graph.tensors[name].num_elements) for name in names)
