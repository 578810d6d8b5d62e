"""Prefix tree: which pages hold the keys and values of which beginnings of sequences."""

from __future__ import annotations

from collections.abc import Iterator


class PrefixNode:
    """One full page of tokens, after those of its parents. Its identity stands for the whole beginning."""

    __slots__ = ("children", "holders", "name", "page", "parent")

    def __init__(self, parent: PrefixNode | None, name: tuple[int, ...] | str) -> None:
        self.parent, self.name = parent, name
        self.children: dict[tuple[int, ...] | str, PrefixNode] = {}
        self.page: int | None = None
        """Where the keys and values lie; None: nowhere, the node only leads to others or is held."""
        self.holders = 0
        """How many sequences have it as their last full page."""


class PrefixTree:
    """Beginnings of sequences, page by page, under one root for each salt.

    A hash only finds the child: Python's dict compares the tokens themselves, and the way from the root compares
    all tokens before, so two different beginnings are never taken for one another.
    """

    def __init__(self) -> None:
        self._top = PrefixNode(None, "")

    def root(self, salt: str) -> PrefixNode:
        """The empty beginning of those who share this salt."""
        return self.child(self._top, salt)

    def child(self, node: PrefixNode, name: tuple[int, ...] | str) -> PrefixNode:
        """The node's child with these tokens, made if there is none."""
        found = node.children.get(name)
        if found is None:
            found = node.children[name] = PrefixNode(node, name)
        return found

    def hold(self, node: PrefixNode) -> PrefixNode:
        """Keep the node, page or not, until it is let go."""
        node.holders += 1
        return node

    def let_go(self, node: PrefixNode) -> None:
        """Undo one `hold`."""
        node.holders -= 1
        self.prune(node)

    def prune(self, node: PrefixNode) -> None:
        """Remove the node, and then its parents, where nothing needs them any more."""
        while node.parent is not None and not (node.holders or node.children or node.page is not None):
            del node.parent.children[node.name]
            node = node.parent

    def __iter__(self) -> Iterator[PrefixNode]:
        """Every node but the top, in no order that means anything."""
        pending = list(self._top.children.values())
        while pending:
            node = pending.pop()
            yield node
            pending.extend(node.children.values())
