"""Step: a batch, whose tokens it holds, and who is to get tokens from it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from superscaler.runtime.serving.batch import Batch, Pairs
from superscaler.runtime.serving.kv_cache import KvCache
from superscaler.runtime.serving.request import FinishReason, Sequence


class DraftTree(Protocol):
    """Tokens that may follow a sequence. The root, its last token, is not among them."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """Of node 0, 1, ..."""
        ...

    @property
    def parents(self) -> tuple[int, ...]:
        """The node that each follows, with a lower number; -1: the root."""
        ...


@dataclass(frozen=True, slots=True)
class Part:
    """What one sequence has in a step: its next tokens, or its last token and a tree of drafted ones."""

    sequence: Sequence
    computed: int
    """Its tokens in the cache before the step."""
    new: int
    """Tokens that it has in the batch; with a tree 1 + nodes."""
    tree: DraftTree | None = None
    forks: tuple[Sequence, ...] = ()
    """Further continuations that begin when this step has computed the prompt."""

    @property
    def reaches_the_end(self) -> bool:
        """Whether the step computes the sequence's last token, so that the next can be known."""
        return self.computed + self.new >= len(self.sequence.tokens)


@dataclass(frozen=True, slots=True)
class Sample:
    """A sequence that is to get tokens from a step."""

    sequence: Sequence
    wanted: range
    """Which of the batch's `wanted` are its logits: one, or with a tree the root's and then each node's."""
    tree: DraftTree | None = None


@dataclass(frozen=True, slots=True)
class Sampled:
    """What became of a sample."""

    tokens: tuple[int, ...]
    """The sequence's new tokens: those of the accepted nodes, and one more."""
    nodes: tuple[int, ...] = ()
    """The accepted nodes of the tree, from the root's child down."""
    ends: FinishReason | None = None
    """Why the sequence ends with these where neither an end token nor its length says it."""


@dataclass(frozen=True, slots=True)
class Step:
    """What the scheduler wants done."""

    batch: Batch
    parts: tuple[Part, ...]
    """[S] In the order of the batch."""
    samples: tuple[Sample, ...]
    """In the order of the batch's `wanted`."""


class StepPlan:
    """A step in the making.

    Args:
        budget: Most tokens.
        most_parts: Most sequences.
    """

    def __init__(self, budget: int, most_parts: int) -> None:
        self._most_parts = most_parts
        self.budget = budget
        """How many more tokens there is room for."""
        self.parts: dict[str, Part] = {}
        """By the sequence's id, in the order of the batch."""
        self.admitted: set[str] = set()
        """Sequences that hold pages on the device only since this step."""
        self.displaced: set[str] = set()
        """Sequences that held pages there until this step."""
        self.short = False
        """Whether memory ran out for one that runs already: nobody else is let in."""
        self.moves: list[tuple[int, int]] = []
        self.copies: list[tuple[int, int]] = []
        self.swaps_out: list[tuple[int, int]] = []
        self.swaps_in: list[tuple[int, int]] = []

    @property
    def has_room(self) -> bool:
        """Whether another sequence may take part."""
        return self.budget > 0 and len(self.parts) < self._most_parts

    def add(self, part: Part) -> None:
        """Let a sequence take part."""
        assert 0 < part.new <= self.budget
        self.budget -= part.new
        self.parts[part.sequence.id] = part

    def make(self, cache: KvCache) -> Step:
        """The step, when everybody has a place; the pages of all parts are theirs to write."""
        parts = tuple(self.parts.values())
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        starts = [0]
        wanted: list[int] = []
        samples: list[Sample] = []
        for part in parts:
            sequence, first = part.sequence, len(tokens)
            tokens += _tokens(part)
            positions += _positions(part)
            slots += cache.slots(sequence.id, range(part.computed, part.computed + part.new))
            starts.append(len(tokens))
            if not part.reaches_the_end:
                continue
            rows = range(first, len(tokens)) if part.tree is not None else range(len(tokens) - 1, len(tokens))
            for reader in (sequence, *part.forks):
                samples.append(Sample(reader, range(len(wanted), len(wanted) + len(rows)), part.tree))
                wanted += rows
        batch = Batch(
            tokens=tuple(tokens),
            positions=tuple(positions),
            slots=tuple(slots),
            starts=tuple(starts),
            lengths=tuple(part.computed + part.new for part in parts),
            pages=tuple(cache.pages_of(part.sequence.id) for part in parts),
            wanted=tuple(wanted),
            visible=_visible(parts),
            copies=tuple(self.copies),
            moves=tuple(self.moves),
            swaps_out=tuple(self.swaps_out),
            swaps_in=tuple(self.swaps_in),
        )
        return Step(batch, parts, tuple(samples))


def accepted_moves(computed: int, nodes: Iterable[int]) -> Pairs:
    """Numbers of keys, (from, to), that put the accepted nodes of a tree in a row after its root.

    Args:
        computed: Keys before the root's.
        nodes: From the root's child down, so that no key is overwritten before it has moved.
    """
    pairs = ((computed + 1 + node, computed + 1 + depth) for depth, node in enumerate(nodes))
    return tuple((source, target) for source, target in pairs if source != target)


def tree_depth(tree: DraftTree) -> int:
    """The most nodes on a path from the root."""
    return max(_depths(tree))


def _depths(tree: DraftTree) -> list[int]:
    """[1 + nodes] How far each is from the root, the root first."""
    depths = [0]
    for node, parent in enumerate(tree.parents):
        assert -1 <= parent < node, f"node {node} of a tree follows node {parent}, which comes later"
        depths.append(depths[parent + 1] + 1)
    return depths


def _tokens(part: Part) -> list[int]:
    if part.tree is not None:
        return [part.sequence.tokens[-1], *part.tree.tokens]
    return part.sequence.tokens[part.computed : part.computed + part.new]


def _positions(part: Part) -> list[int]:
    if part.tree is not None:
        return [part.computed + depth for depth in _depths(part.tree)]
    return list(range(part.computed, part.computed + part.new))


def _visible(parts: tuple[Part, ...]) -> tuple[tuple[bool, ...], ...]:
    """[T][W] Which new tokens of its own sequence each new token sees; empty where no part has a tree."""
    width = max((part.new for part in parts if part.tree is not None), default=0)
    if not width:
        return ()
    causal = [tuple(column <= row for column in range(width)) for row in range(width)]
    rows: list[tuple[bool, ...]] = []
    for part in parts:
        if part.tree is not None:
            rows += _ancestors(part.tree, width)
        else:  # with more than `width`, nobody looks
            rows += causal[: part.new] if part.new <= width else causal[:1] * part.new
    return tuple(rows)


def _ancestors(tree: DraftTree, width: int) -> list[tuple[bool, ...]]:
    """[1 + nodes][width] A node sees the root, the nodes on the way from it, and itself."""
    rows = [tuple(column == 0 for column in range(width))]
    for node, parent in enumerate(tree.parents):
        rows.append(tuple(seen or column == node + 1 for column, seen in enumerate(rows[parent + 1])))
    return rows
