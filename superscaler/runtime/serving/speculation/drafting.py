"""Token trees of given shapes from a small model, a level of all trees at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from superscaler.runtime.serving.sampling import Row, draw, likeliest, probabilities, uniforms
from superscaler.runtime.serving.speculation.step import Draft, Proposal, Wish
from superscaler.runtime.serving.speculation.token_tree import ROOT, Attempt, TokenTree, ranks


@dataclass(frozen=True, slots=True)
class Place:
    """Where the small model is asked for what comes next."""

    wish: int
    """Which of the wishes."""
    node: int
    """Of its tree; -1 is the root."""
    path: tuple[int, ...]
    """The tokens after the root, down to the node."""


def grow(
    wishes: Sequence[Wish], next_logits: Callable[[Sequence[Place]], Tensor], speculator: int = 0
) -> list[Proposal]:
    """A proposal for each wish, of its shape.

    A greedy row gets the likeliest children. Others get draws without replacement: as lossless as independent
    draws, and no node is spent on a token twice. Where fewer tokens can be drawn than the shape has children, its
    last ones are left out.

    Args:
        next_logits: The logits [places, vocab]; called once for each level, with every node that has children.
    """
    trees = [_Growing(wish.shape, speculator, wish.row) for wish in wishes]
    while places := [Place(number, *end) for number, tree in enumerate(trees) for end in tree.ends()]:
        rows = [trees[place.wish].row(place.node) for place in places]
        logits = next_logits(places)
        for greedy in (True, False):
            some = [number for number, row in enumerate(rows) if row.greedy == greedy]
            if not some:
                continue
            here = logits[torch.tensor(some, device=logits.device)]
            parents = [(trees[places[number].wish], places[number].node) for number in some]
            chosen = [rows[number] for number in some]
            (_extend_by_likeliest if greedy else _extend_by_draws)(here, chosen, parents)
        for tree in trees:
            tree.descend()
    return [tree.proposal() for tree in trees]


class _Growing:
    """A tree that is grown as far as its last level."""

    def __init__(self, shape: Sequence[int], speculator: int, root: Row) -> None:
        self.speculator = speculator
        self._slots: list[list[int]] = [[] for _ in range(len(shape) + 1)]
        for slot, parent in enumerate(shape):
            self._slots[parent + 1].append(slot)
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._slot_of: dict[int, int] = {ROOT: ROOT}
        self._paths: dict[int, tuple[int, ...]] = {ROOT: ()}
        self._rows = {ROOT: root}
        self._children: dict[int, Sequence[int]] = {}
        self._drafts: dict[tuple[int, int], Draft] = {}
        self._level = [ROOT]

    def width(self, node: int) -> int:
        """How many children the shape has there."""
        return len(self._slots[self._slot_of[node] + 1])

    def ends(self) -> list[tuple[int, tuple[int, ...]]]:
        """The nodes of the last level that get children, and the path to each."""
        return [
            (node, self._paths[node])
            for node in self._level
            if self.width(node) and not self.row(node).is_over
        ]

    def row(self, node: int) -> Row:
        """How the token after a node is chosen."""
        if node not in self._rows:
            self._rows[node] = self.row(self._parents[node]).after(self._tokens[node])
        return self._rows[node]

    def extend(self, node: int, tokens: Sequence[int], draft: Tensor | None) -> None:
        """Give a node of the last level its children, in draw order."""
        self._children[node] = tokens
        if draft is not None:
            self._drafts[node, self.speculator] = Draft(draft, replacement=False)

    def descend(self) -> None:
        """Number the new children; they are the last level now."""
        level: list[int] = []
        for node in self._level:
            slots = self._slots[self._slot_of[node] + 1]
            for token, slot in zip(self._children.get(node, ()), slots, strict=False):
                child = len(self._tokens)
                self._tokens.append(token)
                self._parents.append(node)
                self._slot_of[child] = slot
                self._paths[child] = (*self._paths[node], token)
                level.append(child)
        self._level = level

    def proposal(self) -> Proposal:
        """What was grown."""
        attempts = tuple((Attempt(self.speculator, rank),) for rank in ranks(self._parents))
        return Proposal(TokenTree(tuple(self._tokens), tuple(self._parents), attempts), self._drafts)


def _extend_by_likeliest(logits: Tensor, rows: list[Row], parents: list[tuple[_Growing, int]]) -> None:
    widths = [tree.width(node) for tree, node in parents]
    tokens = likeliest(logits, rows, max(widths))
    for (tree, node), width, found in zip(parents, widths, tokens, strict=True):
        tree.extend(node, found[:width], None)


def _extend_by_draws(logits: Tensor, rows: list[Row], parents: list[tuple[_Growing, int]]) -> None:
    weights = probabilities(logits, rows)
    widths = [tree.width(node) for tree, node in parents]
    purpose = f"draft {parents[0][0].speculator}"
    # siblings are at one position: numbered apart, they draw independently
    numbers = torch.tensor([(node + 1) << 16 for _, node in parents], device=weights.device)
    left, drawn, possible = weights.clone(), [], []
    for number in range(max(widths)):
        tokens = draw(left, uniforms(rows, purpose, numbers + number)).unsqueeze(-1)
        possible.append(left.gather(-1, tokens) > 0)
        drawn.append(tokens)
        left.scatter_(-1, tokens, 0.0)
    counts = torch.cat(possible, -1).sum(-1).tolist()
    found = torch.cat(drawn, -1).tolist()
    for place, (tree, node) in enumerate(parents):
        tree.extend(node, found[place][: min(widths[place], counts[place])], weights[place])
