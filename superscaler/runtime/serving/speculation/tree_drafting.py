"""Tree drafting: for the batch at hand a shape of trees is chosen, speculators fill it, and the trees are merged."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from superscaler.runtime.serving.engine import Decoding
from superscaler.runtime.serving.speculation.step import Proposal, Speculator, Wish, merged
from superscaler.runtime.serving.speculation.token_tree import ROOT, TokenTree, depths
from superscaler.runtime.serving.speculation.tree_choice import SpeculationStep
from superscaler.runtime.serving.step import Step


class Shapes(Protocol):
    """Says what shape the trees of a step have; `tree_choice.TreeChoice` finds out which is best."""

    def choose(self, batch: int, other_tokens: int = 0) -> tuple[int, ...]:
        """The parents of each sequence's tree; empty: do not speculate."""
        ...

    def observe(self, step: SpeculationStep) -> None:
        """Learn from a step."""
        ...


class FixedShape:
    """The same shape always.

    Args:
        parents: Of the tree, level by level (see `token_tree`).
    """

    def __init__(self, parents: tuple[int, ...]) -> None:
        self._parents = parents

    def choose(self, batch: int, other_tokens: int = 0) -> tuple[int, ...]:
        """That shape."""
        return self._parents

    def observe(self, step: SpeculationStep) -> None:
        """Nothing is to be learned."""


class TreeDrafting:
    """Drafts for an engine.

    Args:
        speculators: Each proposes a tree of the chosen shape for each sequence; their numbers differ.
        shapes: Chooses.
        clock: Seconds; drafting is measured with it.
    """

    def __init__(self, speculators: Sequence[Speculator], shapes: Shapes, clock: Callable[[], float]) -> None:
        self._speculators, self._shapes, self._clock = tuple(speculators), shapes, clock
        self._asked: set[str] = set()
        """The sequences that were to decode in the coming step."""
        self._seconds = 0.0
        """Of drafting, since the last step from which something was learned."""

    def propose(self, sequences: Mapping[str, Decoding], prompt_tokens: int) -> Mapping[str, Proposal]:
        """A proposal for each sequence, as far as one pays and there is room for it."""
        self._asked = set(sequences)
        if not sequences:
            return {}
        began = self._clock()
        shape = self._shapes.choose(len(sequences), prompt_tokens)
        proposals = self._proposals(shape, sequences) if shape else {}
        self._seconds += self._clock() - began
        return proposals

    def verified(self, step: Step, accepted: Mapping[str, tuple[int, ...]], seconds: float) -> None:
        """Learn from a step."""
        # prompts that end with the step give their first tokens in it, but could have had no trees
        batch = sum(part.sequence.id in self._asked for part in step.parts)
        if not batch:
            return
        drafted = [
            (sample.tree, accepted[sample.sequence.id])
            for sample in step.samples
            if isinstance(sample.tree, TokenTree)
        ]
        nodes = sum(len(tree) for tree, _ in drafted)
        self._shapes.observe(
            SpeculationStep(
                batch=batch,
                other_tokens=len(step.batch.tokens) - batch - nodes,
                trees=[(tree.parents, path) for tree, path in drafted],
                seconds=seconds,
                draft_seconds=self._seconds,
                ranks=[choices(tree) for tree, _ in drafted] if len(self._speculators) > 1 else (),
            )
        )
        self._seconds = 0.0

    def forget(self, sequence: str) -> None:
        """The sequence has ended."""
        for speculator in self._speculators:
            speculator.forget(sequence)

    def _proposals(self, shape: tuple[int, ...], sequences: Mapping[str, Decoding]) -> Mapping[str, Proposal]:
        with_room = {name: sequence for name, sequence in sequences.items() if sequence.room > 1}
        if not with_room:
            return {}
        wishes = [
            Wish(name, sequence.row, top_levels(shape, sequence.room - 1))
            for name, sequence in with_room.items()
        ]
        found = [speculator.propose(wishes) for speculator in self._speculators]
        if len(found) == 1:
            proposals = found[0]
        else:
            proposals = [merged(of_one) for of_one in zip(*found, strict=True)]
        return dict(zip(with_room, proposals, strict=True))


def top_levels(shape: Sequence[int], levels: int) -> tuple[int, ...]:
    """The first so many levels of a tree, as parents; levels come in order, so they are its first nodes."""
    return tuple(parent for parent, depth in zip(shape, depths(shape), strict=True) if depth <= levels)


def choices(tree: TokenTree) -> tuple[int, ...]:
    """Which choice each node is of the speculator that would rather have it: 0 for somebody's first."""
    found = [len(tree)] * len(tree)
    for parent in {ROOT, *tree.parents}:
        children = tree.children[parent + 1]
        for tokens in tree.draws(parent).values():
            for rank, token in enumerate(dict.fromkeys(tokens)):
                found[children[token]] = min(found[children[token]], rank)
    return tuple(found)
