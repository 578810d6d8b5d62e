"""Letters by where they lie: what the search for a rule supposes, and the rule that several of them make."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from string import ascii_lowercase

from superscaler.ir.rules import Rule, RuleMismatch, Shape, Term, bind


@dataclass(frozen=True, slots=True)
class Place:
    """Where a letter lies: a dim of a tensor, and how many elements of that dim one step of the letter skips."""

    tensor: int
    """Position among the tensors read, or among those written."""
    dim: int
    stride: int = 1


@dataclass(frozen=True, slots=True)
class Letter:
    """One letter of a rule."""

    size: int
    reads: tuple[Place, ...]
    writes: tuple[Place, ...]
    reducers: tuple[tuple[int, str], ...] = ()
    """Per written tensor without the letter: its position, and how its pieces combine."""
    additive: tuple[int, ...] = ()
    """Positions of the tensors read that one piece alone reads where a result is value-split."""


@dataclass(frozen=True, slots=True)
class RuleText:
    """A rule as text, which binds to the shapes it was made for."""

    text: str
    shape_argument: int | None = None


def make_rule(
    letters: Sequence[Letter], reads: Sequence[Shape], writes: Sequence[Shape], whole: Sequence[Letter] = ()
) -> tuple[Rule, dict[str, int]]:
    """The rule of these letters, with all else fixed (also the letters `whole`), and the size of each letter.

    Raises:
        RuleMismatch: Two letters cross in a dim, or ask for different reducers or additive tensors.
    """
    named: dict[tuple[str, int, int], list[tuple[int, int, str]]] = {}
    sizes: dict[str, int] = {}
    for number, letter in enumerate((*letters, *whole)):
        sizes[f"l{number}"] = letter.size
        for side, places in (("r", letter.reads), ("w", letter.writes)):
            for place in places:
                entry = (place.stride, letter.size, f"l{number}")
                named.setdefault((side, place.tensor, place.dim), []).append(entry)
    fixed = {f"l{number}": sizes[f"l{number}"] for number in range(len(letters), len(letters) + len(whole))}

    def dims(side: str, tensor: int, shape: Shape) -> tuple[tuple[str, ...], ...]:
        return tuple(
            _dim(size, named.get((side, tensor, dim), []), f"{side}{tensor}_{dim}", fixed)
            for dim, size in enumerate(shape)
        )

    additive = _agreed((letter.additive for letter in letters if letter.reducers), "additive tensors")
    terms = [
        tuple(
            Term(dims("r", i, shape), additive=i in (additive or ())) for i, shape in enumerate(reads)
        ),
        tuple(
            Term(dims("w", i, shape), reducer=_reducer(letters, i)) for i, shape in enumerate(writes)
        ),
    ]  # fmt: skip
    return Rule(terms[0], terms[1], frozenset(fixed)), {**sizes, **fixed}


def _reducer(letters: Sequence[Letter], tensor: int) -> str:
    named = (reducer for letter in letters for position, reducer in letter.reducers if position == tensor)
    return _agreed(named, "reducers") or "sum"


def _agreed(values: Iterable, what: str):
    distinct = set(values)
    if len(distinct) > 1:
        raise RuleMismatch(f"letters of one rule with different {what}: {distinct}")
    return next(iter(distinct), None)


def _dim(
    size: int, entries: list[tuple[int, int, str]], prefix: str, fixed: dict[str, int]
) -> tuple[str, ...]:
    """The letters of one dim, major first; what no letter covers becomes a fixed letter of its own."""
    names: list[str] = []

    def cover(count: int) -> None:
        if count > 1:
            names.append(f"{prefix}_{len(names)}")
            fixed[names[-1]] = count

    above = size
    for stride, count, name in sorted(entries, reverse=True):
        if above % (stride * count):
            raise RuleMismatch(f"the letters of a dim of {size} elements cross")
        cover(above // (stride * count))
        names.append(name)
        above = stride
    cover(above)
    return tuple(names)


def rule_text(rule: Rule, sizes: dict[str, int], reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """The rule in index notation, with letters from the alphabet.

    Raises:
        RuleMismatch: The text does not tell the sizes of its letters.
    """
    names = {letter: _name(number) for number, letter in enumerate(rule.letters)}
    sides = [", ".join(_term(term, names, rule.fixed) for term in side) for side in (rule.reads, rule.writes)]
    text = f"{sides[0]} -> {sides[1]}"
    _, bound = bind(text, reads, writes)
    if bound != {names[letter]: sizes[letter] for letter in rule.letters}:
        raise RuleMismatch(f"{text!r} gives its letters other sizes: {bound}")
    return text


def _name(number: int) -> str:
    round_, index = divmod(number, len(ascii_lowercase))
    return ascii_lowercase[index] + (str(round_) if round_ else "")


def _term(term: Term, names: dict[str, str], fixed: frozenset[str]) -> str:
    def token(letters: tuple[str, ...]) -> str:
        marked = [names[letter] + ("!" if letter in fixed else "") for letter in letters]
        return "1" if not marked else marked[0] if len(marked) == 1 else f"({' '.join(marked)})"

    dims = " ".join(map(token, term.dims)) or "."
    return f"{'+' if term.additive else ''}{dims}{'' if term.reducer == 'sum' else f':{term.reducer}'}"
