"""The token trees with the most tokens expected to be accepted, of every size.

The chance that the b-th child of a node is the accepted one, once the node is, is taken to depend on b alone and
to fall with it. A node is then accepted with the product of the chances on its path, a tree gives one token and
as many more as these products sum to, and every node has a larger product than those below it and its later
siblings. So the best tree of m nodes has the m largest products: they are found one by one, and each tree holds
the smaller ones. (Sequoia, arXiv 2402.12374, finds the same trees by dynamic programming.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from superscaler.runtime.serving.speculation.token_tree import ROOT


@dataclass(frozen=True, slots=True)
class BestTrees:
    """Trees of 1, 2, ... nodes, each with one more than the last."""

    expected: tuple[float, ...]
    """Tokens that a step is expected to give with a tree of i + 1 nodes, the model's own included."""
    levels: tuple[int, ...]
    """Of that tree."""
    nodes: tuple[tuple[int, int], ...]
    """What the tree of i + 1 nodes has more: (its parent, as an index here or -1, which child it is)."""

    def shape(self, size: int) -> tuple[int, ...]:
        """The tree of `size` nodes as parents in level order."""
        children: dict[int, list[tuple[int, int]]] = {}
        for node, (parent, rank) in enumerate(self.nodes[:size]):
            children.setdefault(parent, []).append((rank, node))
        parents: list[int] = []
        level = [(ROOT, ROOT)]
        while level:
            found = [(number, child) for node, number in level for _, child in sorted(children.get(node, ()))]
            start = len(parents)
            parents += [number for number, _ in found]
            level = [(child, start + place) for place, (_, child) in enumerate(found)]
        return tuple(parents)


def best_trees(chances: Sequence[float], levels: int, size: int) -> BestTrees:
    """Find them.

    Args:
        chances: Of each child, not rising.
        levels: Most levels.
        size: Most nodes; there are fewer where so many levels have no room for them.
    """
    expected: list[float] = []
    deepest: list[int] = []
    nodes: list[tuple[int, int]] = []
    # one entry for each node that may come next: first children of nodes that are in, next siblings of those
    waiting: list[tuple[float, int, int, int]] = []

    def wait(product: float, parent: int, rank: int, level: int) -> None:
        if level <= levels and rank < len(chances):
            heappush(waiting, (-product * chances[rank], level, parent, rank))

    products = {ROOT: 1.0}
    wait(1.0, ROOT, 0, 1)
    while waiting and len(nodes) < size:
        negative, level, parent, rank = heappop(waiting)
        node = len(nodes)
        nodes.append((parent, rank))
        products[node] = -negative
        expected.append((expected[-1] if expected else 1.0) - negative)
        deepest.append(max(level, deepest[-1] if deepest else 0))
        wait(products[parent], parent, rank + 1, level)
        wait(products[node], node, 0, level + 1)
    return BestTrees(tuple(expected), tuple(deepest), tuple(nodes))
