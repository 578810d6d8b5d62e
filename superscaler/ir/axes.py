"""Axes: named dimensions found by unifying the letters of rules along the edges of the graph.

Each dim of each tensor is a product of axes, major first: mostly one; ``(heads, 16)`` where a reshape
somewhere splits the dim; none for a dim of one element. The axes of all dims in a row are the tensor's *fine*
dims. Cutting an axis that runs through several operators cuts all of them, forward and backward.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from superscaler.ir.graph import Graph
from superscaler.ir.kinds import rule_of
from superscaler.ir.rules import Rule, Term
from superscaler.ir.tensor import Role


@dataclass(frozen=True, slots=True)
class Axis:
    """One dimension of the model."""

    index: int
    size: int
    name: str
    """``batch``, ``heads``, ``vocab``, ``experts``, or after a parameter: ``h.0.mlp.up.out``. Not unique."""

    def __str__(self) -> str:
        return f"{self.name}({self.size})"


@dataclass(frozen=True)
class Axes:
    """The axes of a graph."""

    dims: Mapping[str, tuple[tuple[Axis, ...], ...]]
    """Tensor -> per dim its axes, major first."""
    letters: Mapping[str, Mapping[str, tuple[Axis, ...]]]
    """Operator -> letter of its rule -> axes."""
    rules: Mapping[str, Rule]
    """Operator -> its rule, bound."""
    shared: Mapping[str, frozenset[Axis]]
    """Operator -> axes under two of its letters, as in ``x @ x.T``: which of the two is cut must be said."""

    def fine(self, tensor: str) -> tuple[Axis, ...]:
        """The fine dims of a tensor."""
        return tuple(axis for dim in self.dims[tensor] for axis in dim)

    def fine_sizes(self, tensor: str) -> tuple[int, ...]:
        """Elements per fine dim."""
        return tuple(axis.size for axis in self.fine(tensor))

    def slots(self, operator: str, term: Term) -> tuple[tuple[str, Axis], ...]:
        """Per fine dim of the tensor a term stands for: the letter and the axis."""
        letters = self.letters[operator]
        return tuple((letter, axis) for letter in term.letters for axis in letters[letter])

    def cuttable(self, operator: str, letter: str, axis: Axis) -> bool:
        """Whether the operator's rule allows to cut `axis` under `letter`."""
        rule, parts = self.rules[operator], self.letters[operator][letter]
        if letter in rule.fixed or parts.count(axis) > 1:
            return False
        return letter not in rule.indexed or parts[0] == axis


class _Atoms:
    """Union-find over dims; an atom may later turn out to be a product of smaller ones."""

    def __init__(self) -> None:
        self.size: list[int] = []
        self.parent: list[int] = []
        self.parts: dict[int, tuple[int, ...]] = {}

    def new(self, size: int) -> int:
        self.size.append(size)
        self.parent.append(len(self.parent))
        return len(self.parent) - 1

    def root(self, atom: int) -> int:
        while self.parent[atom] != atom:
            self.parent[atom] = self.parent[self.parent[atom]]
            atom = self.parent[atom]
        return atom

    def leaves(self, atoms: Sequence[int]) -> list[int]:
        result: list[int] = []
        for atom in atoms:
            root = self.root(atom)
            parts = self.parts.get(root)
            result += self.leaves(parts) if parts else [root]
        return result

    def unify(self, first: Sequence[int], second: Sequence[int]) -> bool:
        """Make two products the same; False when their factors do not nest."""
        left, right = self.leaves(first)[::-1], self.leaves(second)[::-1]
        while left and right:
            a, b = left.pop(), right.pop()
            if self.size[a] == self.size[b]:
                self.parent[self.root(a)] = self.root(b)
                continue
            if self.size[a] < self.size[b]:
                a, b, left, right = b, a, right, left
            if self.size[a] % self.size[b] != 0:
                return False
            self.parts[a] = (self.new(self.size[b]), self.new(self.size[a] // self.size[b]))
            left += self.leaves(self.parts[a])[::-1]
            right.append(b)
        return not left and not right


def find_axes(graph: Graph) -> Axes:
    """Unify the letters of every operator's rule with the dims of its tensors.

    Raises:
        TraceError: An operator has no rule, or one that does not fit it.
    """
    atoms = _Atoms()
    dims = {
        name: [[atoms.new(size)] if size > 1 else [] for size in tensor.shape]
        for name, tensor in graph.tensors.items()
    }
    letters: dict[str, dict[str, list[int]]] = {}
    rules: dict[str, Rule] = {}
    for operator in graph.operators:
        rule, sizes = rule_of(operator, graph)
        own = letters.get(operator.original) or {
            letter: [atoms.new(size)] if size > 1 else [] for letter, size in sizes.items()
        }
        rules[operator.name], letters[operator.name] = rule, own
        unlinked: set[str] = set()
        for tensor, term in zip(operator.reads + operator.writes, rule.reads + rule.writes, strict=True):
            for dim, parts in zip(dims[tensor], term.dims, strict=True):
                if not atoms.unify(dim, [atom for letter in parts for atom in own[letter]]):
                    unlinked.update(parts)
        if unlinked:
            rules[operator.name] = replace(rule, fixed=rule.fixed | unlinked)
    names = _names(graph, atoms, dims, letters)
    table = {root: Axis(index, atoms.size[root], names[root]) for index, root in enumerate(names)}

    def axes(parts: Sequence[int]) -> tuple[Axis, ...]:
        return tuple(table[leaf] for leaf in atoms.leaves(parts))

    letter_axes = {
        name: {letter: axes(parts) for letter, parts in own.items()} for name, own in letters.items()
    }
    return Axes(
        {name: tuple(axes(dim) for dim in tensor_dims) for name, tensor_dims in dims.items()},
        letter_axes,
        rules,
        {name: _shared(own) for name, own in letter_axes.items()},
    )


def _shared(letters: Mapping[str, tuple[Axis, ...]]) -> frozenset[Axis]:
    """Axes that occur more than once in the letters of an operator."""
    counts = Counter(axis for axes in letters.values() for axis in axes)
    return frozenset(axis for axis, count in counts.items() if count > 1)


_INPUT_DIMS = ("batch", "seq")


def _names(
    graph: Graph,
    atoms: _Atoms,
    dims: Mapping[str, list[list[int]]],
    letters: Mapping[str, Mapping[str, list[int]]],
) -> dict[int, str]:
    """A name per leaf atom: an input's batch and seq, else a telling letter, experts, else a parameter's dim."""
    names: dict[int, str] = {}
    for name in graph.inputs:
        for dim, label in zip(dims[name], _INPUT_DIMS, strict=False):
            for leaf in atoms.leaves(dim):
                names.setdefault(leaf, label)
    for own in letters.values():
        for letter, parts in own.items():
            if len(letter) > 3 and letter.isalpha():
                for leaf in atoms.leaves(parts)[:1]:
                    names.setdefault(leaf, letter)
    parameters = {tensor.name for tensor in graph.of_role(Role.PARAMETER)}
    for operator in graph.operators:  # a product with a parameter's matrices one by one: one per expert
        if operator.kind in ("aten.bmm", "aten.baddbmm") and not parameters.isdisjoint(operator.reads):
            for leaf in atoms.leaves(letters[operator.name]["b"])[:1]:
                names.setdefault(leaf, "experts")
    for tensor in graph.of_role(Role.PARAMETER):
        labels = (
            ("out", "in") if len(tensor.shape) == 2 else tuple(f"dim{i}" for i in range(len(tensor.shape)))
        )
        for dim, label in zip(dims[tensor.name], labels, strict=True):
            base = f"{tensor.name.rpartition('.')[0]}.{label}"
            for number, leaf in enumerate(atoms.leaves(dim)):
                names.setdefault(leaf, f"{base}.{number}" if number else base)
    for name, tensor_dims in dims.items():
        for number, dim in enumerate(tensor_dims):
            for leaf in atoms.leaves(dim):
                names.setdefault(leaf, f"{name}.dim{number}")
    for own in letters.values():
        for letter, parts in own.items():
            for leaf in atoms.leaves(parts):
                names.setdefault(leaf, letter)
    return names
