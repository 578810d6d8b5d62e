"""Rules: an operator's signature in index notation, from which every legal cut follows.

    "*b k, n k -> *b n"        linear without bias

A term per tensor read and written, a token per dim:

    k       a letter: one dim; the same letter is the same elements everywhere in the rule
    *b      any number of dims, one letter each
    1       a dim of one element
    (h e)   a dim that is the product of letters, major first
    .       a tensor without dims

A letter may be cut unless something says otherwise. Cutting a letter that is missing in a written term leaves
that tensor value-split: every piece holds a summand. Marks:

    d!      never cut: the operator needs the whole of it (the row of a softmax)
    v@      cut as one interval only, whose start the operator is told (the rows of an embedding)
    +n      (first in a term) additive: where the result is value-split, one piece alone reads the values
    n:max   (last in a term) how the pieces of this result combine, if not by sum
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Term:
    """One tensor of a rule: per dim its letters, major first (none for a dim of one element)."""

    dims: tuple[tuple[str, ...], ...]
    additive: bool = False
    reducer: str = "sum"

    @property
    def letters(self) -> tuple[str, ...]:
        """All letters, dim by dim."""
        return tuple(letter for dim in self.dims for letter in dim)


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule bound to the number of dims of one operator's tensors."""

    reads: tuple[Term, ...]
    writes: tuple[Term, ...]
    fixed: frozenset[str] = frozenset()
    indexed: frozenset[str] = frozenset()

    @property
    def letters(self) -> tuple[str, ...]:
        """All letters, in order of appearance."""
        return tuple(dict.fromkeys(letter for term in self.reads + self.writes for letter in term.letters))


class RuleMismatch(Exception):
    """A rule does not fit the shapes it was bound to."""


def bind(text: str, reads: Sequence[Shape], writes: Sequence[Shape]) -> tuple[Rule, dict[str, int]]:
    """Bind a rule to shapes: the rule with ``*b`` spelled out, and the size of every letter.

    Raises:
        RuleMismatch: The number of tensors, of dims, or the sizes disagree.

    >>> rule, sizes = bind("*b k, n k -> *b n", [(8, 128, 64), (256, 64)], [(8, 128, 256)])
    >>> sizes
    {'b0': 8, 'b1': 128, 'k': 64, 'n': 256}
    """
    shapes = tuple(map(tuple, reads)), tuple(map(tuple, writes))
    rule = _spell_out(text, *(tuple(map(len, side)) for side in shapes))
    dims = [
        (dim, size)
        for term, shape in zip(rule.reads + rule.writes, shapes[0] + shapes[1], strict=True)
        for dim, size in zip(term.dims, shape, strict=True)
    ]
    return rule, _letter_sizes(text, dims)


def _letter_sizes(text: str, dims: list[tuple[tuple[str, ...], int]]) -> dict[str, int]:
    """Sizes of letters from sizes of dims; products of letters are told apart by the dims that split them."""
    sizes: dict[str, int] = {}
    while dims:
        unclear = []
        for dim, size in dims:
            unknown = [letter for letter in dim if letter not in sizes]
            known = prod(sizes[letter] for letter in dim if letter in sizes)
            if len(unknown) > 1:
                unclear.append((dim, size))
            elif (not unknown and known != size) or (unknown and (known == 0 or size % known != 0)):
                raise RuleMismatch(
                    f"{text!r}: the dim {' '.join(dim) or '1'} has {size} elements, with {sizes}"
                )
            elif unknown:
                sizes[unknown[0]] = size // known
        if len(unclear) == len(dims):
            dim, size = dims[0]
            raise RuleMismatch(
                f"{text!r}: nothing tells how the dim ({' '.join(dim)}) has {size} elements, with {sizes}"
            )
        dims = unclear
    return sizes


@cache
def _spell_out(text: str, reads: tuple[int, ...], writes: tuple[int, ...]) -> Rule:
    left, arrow, right = text.partition("->")
    sides = [[term.strip() for term in side.split(",")] if side.strip() else [] for side in (left, right)]
    if not arrow or (len(sides[0]), len(sides[1])) != (len(reads), len(writes)):
        raise RuleMismatch(
            f"{text!r} is for {len(sides[0])} -> {len(sides[1])} tensors, not {len(reads)} -> {len(writes)}"
        )
    marks: dict[str, set[str]] = {"!": set(), "@": set()}
    terms = [
        [_term(text, term, rank, marks) for term, rank in zip(side, ranks, strict=True)]
        for side, ranks in zip(sides, (reads, writes), strict=True)
    ]
    return Rule(tuple(terms[0]), tuple(terms[1]), frozenset(marks["!"]), frozenset(marks["@"]))


def _term(text: str, term: str, rank: int, marks: Mapping[str, set[str]]) -> Term:
    body, _, reducer = term.partition(":")
    additive = body.startswith("+")
    tokens = re.findall(r"\([^)]*\)|\S+", body.removeprefix("+"))
    tokens = [token for token in tokens if token != "."]
    stars = [token for token in tokens if token.startswith("*")]
    spread = rank - len(tokens) + len(stars)
    if len(stars) > 1 or spread < 0 or (not stars and spread):
        raise RuleMismatch(f"{text!r}: the term {term!r} does not fit a tensor of {rank} dims")
    dims: list[tuple[str, ...]] = []
    for token in tokens:
        if token.startswith("*"):
            dims += [(_letter(f"{token[1:].rstrip('!@')}{i}{_mark(token)}", marks),) for i in range(spread)]
        elif token == "1":
            dims.append(())
        else:
            dims.append(tuple(_letter(part, marks) for part in token.strip("()").split()))
    return Term(tuple(dims), additive, reducer or "sum")


def _mark(token: str) -> str:
    return token[-1] if token[-1] in "!@" else ""


def _letter(token: str, marks: Mapping[str, set[str]]) -> str:
    mark, name = _mark(token), token.rstrip("!@")
    if mark:
        marks[mark].add(name)
    return name
