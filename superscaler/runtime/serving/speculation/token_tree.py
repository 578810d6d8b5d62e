"""A tree of tokens that may come next, checked by the model in one pass, and who proposed each of them.

Nodes are numbered level by level (breadth first); the children of a node follow each other. The root is not a
node: it is the last token that is already certain, number -1 as a parent and row 0 in what the model computes,
so that node `i` is row `i + 1`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

ROOT = -1
"""The parent of the first level."""


class Attempt(NamedTuple):
    """One time a speculator proposed a token as the next of its parent."""

    speculator: int
    draw: int
    """Which of its draws at that parent this was, from 0."""


@dataclass(frozen=True)
class TokenTree:
    """What may follow a sequence.

    Equal siblings are one node, which keeps every attempt: a token drawn twice has two chances to be accepted,
    and an acceptance rule that forgot one would no longer give the distribution of the model.
    """

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    attempts: tuple[tuple[Attempt, ...], ...] = ()

    def __post_init__(self) -> None:
        assert len(self.tokens) == len(self.parents) == len(self.attempts), (
            "a token, parent and attempts each"
        )
        assert all(self.attempts), "every node was proposed by someone"
        assert is_level_order(self.parents), f"nodes are numbered level by level, not as in {self.parents}"
        siblings = set(zip(self.parents, self.tokens, strict=True))
        assert len(siblings) == len(self.tokens), "equal siblings are one node"

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def children(self) -> tuple[dict[int, int], ...]:
        """By row (0 is the root's): from a token to the node that continues with it, in the order of nodes."""
        found: tuple[dict[int, int], ...] = tuple({} for _ in range(len(self) + 1))
        for node, (token, parent) in enumerate(zip(self.tokens, self.parents, strict=True)):
            found[parent + 1][token] = node
        return found

    def draws(self, parent: int) -> dict[int, tuple[int, ...]]:
        """By speculator, in the order of their numbers, the tokens it proposed after `parent` in draw order."""
        attempts = sorted(
            (attempt, token)
            for token, node in self.children[parent + 1].items()
            for attempt in self.attempts[node]
        )
        tokens: dict[int, tuple[int, ...]] = {}
        for (speculator, _), token in attempts:
            tokens[speculator] = tokens.get(speculator, ()) + (token,)
        return tokens

    def path(self, node: int) -> tuple[int, ...]:
        """The tokens from the first level down to `node`."""
        tokens: list[int] = []
        while node != ROOT:
            tokens.append(self.tokens[node])
            node = self.parents[node]
        return tuple(reversed(tokens))


def from_paths(paths: Iterable[Sequence[int]], speculator: int = 0, size: int | None = None) -> TokenTree:
    """The tree in which each path can be read from the root; a path is one attempt at each of its nodes.

    Args:
        paths: Sequences of tokens, the likeliest first.
        size: Most nodes; paths are cut where there is no room for them. Not for paths drawn at random: which of
            their attempts are kept would depend on what was drawn (see `acceptance`).
    """
    trie = _Trie()
    for path in paths:
        node = ROOT
        for token in path:
            if token not in trie.children[node] and size is not None and len(trie.tokens) >= size:
                break
            draw = sum(len(trie.attempts[child]) for child in trie.children[node].values())
            node = trie.child(node, token)
            trie.attempts[node].append(Attempt(speculator, draw))
    return trie.tree()[0]


def merge(trees: Sequence[TokenTree]) -> tuple[TokenTree, tuple[tuple[int, ...], ...]]:
    """All trees in one: a sequence can be read in it if it can in one of them, and all attempts are kept.

    The speculators of the trees differ: draws of one speculator after one parent are numbered, and two
    numberings cannot be told apart afterwards.

    Returns:
        The tree, and for each of `trees` the new numbers of its nodes.
    """
    speculators = [{a.speculator for attempts in tree.attempts for a in attempts} for tree in trees]
    assert len(set().union(*speculators)) == sum(map(len, speculators)), (
        "merged trees have different speculators"
    )
    trie, places = _Trie(), []
    for tree in trees:
        place: list[int] = []
        for token, parent, attempts in zip(tree.tokens, tree.parents, tree.attempts, strict=True):
            place.append(trie.child(ROOT if parent == ROOT else place[parent], token))
            trie.attempts[place[-1]].extend(attempts)
        places.append(place)
    merged, numbers = trie.tree()
    return merged, tuple(tuple(numbers[node] for node in place) for place in places)


class _Trie:
    """A tree in the making, its nodes numbered as they come."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.attempts: list[list[Attempt]] = []
        self.children: dict[int, dict[int, int]] = {ROOT: {}}

    def child(self, node: int, token: int) -> int:
        """The child of `node` with `token`, made where there is none."""
        found = self.children[node].setdefault(token, len(self.tokens))
        if found == len(self.tokens):
            self.tokens.append(token)
            self.attempts.append([])
            self.children[found] = {}
        return found

    def tree(self) -> tuple[TokenTree, dict[int, int]]:
        """With its nodes numbered level by level, and the new number of each."""
        numbers, parents, frontier = {ROOT: ROOT}, [], [ROOT]
        while frontier:
            level = [(node, child) for node in frontier for child in self.children[node].values()]
            for parent, child in level:
                numbers[child] = len(parents)
                parents.append(numbers[parent])
            frontier = [child for _, child in level]
        del numbers[ROOT]
        tokens = tuple(self.tokens[node] for node in numbers)
        attempts = tuple(tuple(sorted(self.attempts[node])) for node in numbers)
        return TokenTree(tokens, tuple(parents), attempts), numbers


def is_level_order(parents: Sequence[int]) -> bool:
    """Whether parents come before their children, and children in the order of their parents."""
    before = all(ROOT <= parent < node for node, parent in enumerate(parents))
    return before and all(first <= second for first, second in pairwise(parents))


def depths(parents: Sequence[int]) -> tuple[int, ...]:
    """How far below the root each node is, from 1; its position is the root's plus this."""
    found: list[int] = []
    for parent in parents:
        found.append(1 if parent == ROOT else found[parent] + 1)
    return tuple(found)


def ranks(parents: Sequence[int]) -> tuple[int, ...]:
    """Which child of its parent each node is, from 0."""
    seen: dict[int, int] = {}
    found: list[int] = []
    for parent in parents:
        found.append(seen.get(parent, 0))
        seen[parent] = found[-1] + 1
    return tuple(found)


def visible(parents: Sequence[int]) -> tuple[tuple[bool, ...], ...]:
    """Whether row i attends to row j [nodes + 1, nodes + 1]: if j is i or above it; row 0 is the root."""
    rows = [[False] * (len(parents) + 1) for _ in range(len(parents) + 1)]
    rows[0][0] = True
    for node, parent in enumerate(parents):
        rows[node + 1] = list(rows[parent + 1])
        rows[node + 1][node + 1] = True
    return tuple(map(tuple, rows))


def expansion(*widths: int) -> tuple[int, ...]:
    """Parents of the tree <k1, ..., km> in which every node of level i - 1 has ki children.

    A chain of m tokens is `expansion(*[1] * m)`.
    """
    parents: list[int] = []
    level = [ROOT]
    for width in widths:
        start = len(parents)
        parents.extend(parent for parent in level for _ in range(width))
        level = list(range(start, len(parents)))
    return tuple(parents)
