"""Rules that depend on the shapes or arguments of a call: each function returns a rule as text.

All take the operator and the shapes of the tensors it reads and writes.
"""

from collections.abc import Callable, Collection, Sequence
from itertools import pairwise
from math import prod
from typing import Any

from superscaler.ir.graph import Operator
from superscaler.ir.rules import Shape

RuleFunction = Callable[[Operator, Sequence[Shape], Sequence[Shape]], str]


def letters(shape: Shape, prefix: str = "a") -> list[str]:
    """A letter per dim; dims of one element have none."""
    return ["1" if size == 1 else f"{prefix}{i}" for i, size in enumerate(shape)]


def text(*dims: str) -> str:
    """A term."""
    return " ".join(dims) or "."


def whole(names: Sequence[str], dims: Collection[int]) -> list[str]:
    """The letters, those of `dims` marked as never cut."""
    return [f"{name}!" if i in dims and name != "1" else name for i, name in enumerate(names)]


def broadcast(shape: Shape, names: Sequence[str]) -> str:
    """The term of a tensor that broadcasts to one whose dims are `names`."""
    last = names[len(names) - len(shape) :]
    return text(*("1" if size == 1 else name for size, name in zip(shape, last, strict=True)))


def pointwise(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """Element by element, with torch's broadcasting."""
    out = letters(writes[0])
    return f"{', '.join(broadcast(s, out) for s in reads)} -> {', '.join(broadcast(s, out) for s in writes)}"


def any_piece(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """A tensor of one number: any piece of it can be made alone."""
    return f" -> {text(*letters(writes[0]))}"


def all_whole(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """Nothing may be cut: a piece would have to know where it lies, or needs everything."""

    def term(shape: Shape, prefix: str) -> str:
        return text(*(name if name == "1" else f"{name}!" for name in letters(shape, prefix)))

    sides = [
        [term(shape, f"{side}{i}_") for i, shape in enumerate(s)]
        for side, s in zip("rw", (reads, writes), strict=True)
    ]
    return f"{', '.join(sides[0])} -> {', '.join(sides[1])}"


def contract_dims(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """A sum over some dims: a cut of one of them leaves summands."""
    rank = len(reads[0])
    dims = operator.arguments[1] if len(operator.arguments) > 1 else None
    summed = {dim % rank for dim in (dims if dims else range(rank))} if rank else set()
    keep = len(operator.arguments) > 2 and operator.arguments[2]
    names = letters(reads[0])
    out = [("1" if i in summed else name) for i, name in enumerate(names) if keep or i not in summed]
    return f"{text(*names)} -> {text(*out)}"


def keep_dim(position: int, default: int | None = -1) -> RuleFunction:
    """The dim told by the argument at `position` is needed whole (softmax, sort); the others go along.

    It is the same dim in every tensor that has it in the size of the first; it may be gone, or of another size.
    """

    def rule(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
        full = reads[0]
        dim = argument(operator, position, operator.keyword("dim", default))
        dims = range(len(full)) if dim is None else {dim % len(full)} if full else set()
        names = whole(letters(full), dims)

        def term(shape: Shape) -> str:
            if len(shape) < len(full):
                return text(*(name for i, name in enumerate(names) if i not in dims))
            own = ["1" if size == 1 else f"z{i}!" for i, size in enumerate(shape)]
            return text(
                *(
                    name if size == same else fresh
                    for name, fresh, size, same in zip(names, own, shape, full, strict=True)
                )
            )

        return f"{', '.join(map(term, reads))} -> {', '.join(map(term, writes))}"

    return rule


def argument(operator: Operator, position: int, default: Any = None) -> Any:
    """A positional argument that may have been left out."""
    return operator.arguments[position] if len(operator.arguments) > position else default


def across_dim(position: int, default: int = 0) -> RuleFunction:
    """The dim told by the argument at `position` is whole; tensors may differ in its size, or lack it."""

    def rule(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
        full = max((*reads, *writes), key=len)
        dim = argument(operator, position, default)
        return across(len(full), {dim % len(full)} if full else set(), reads, writes)

    return rule


def across(rank: int, dims: Collection[int], reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """The dims are whole; tensors of `rank` dims may differ in their sizes, others lack them. The rest goes along."""
    full = next(shape for shape in (*reads, *writes) if len(shape) == rank)
    names = letters(full)

    def term(shape: Shape, own: str) -> str:
        if len(shape) != rank:
            return text(*(name for i, name in enumerate(names) if i not in dims))
        own_names = [f"{own}_{i}!" if i in dims else name for i, name in enumerate(names)]
        return text(*("1" if size == 1 else name for size, name in zip(shape, own_names, strict=True)))

    left = ", ".join(term(shape, f"r{i}") for i, shape in enumerate(reads))
    return f"{left} -> {', '.join(term(shape, f'w{i}') for i, shape in enumerate(writes))}"


def move_dims(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """Transpose and permute."""
    names = letters(reads[0])
    if operator.kind == "aten.permute":
        order = [dim % len(names) for dim in operator.arguments[1]]
    else:
        first, second = (dim % len(names) for dim in operator.arguments[1:3])
        order = list(range(len(names)))
        order[first], order[second] = order[second], order[first]
    return f"{text(*names)} -> {text(*(names[dim] for dim in order))}"


def stretch(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """Expand: a stretched dim appears in the result alone."""
    out = letters(writes[0])
    return f"{broadcast(reads[0], out)} -> {text(*out)}"


def regroup(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """Reshape: dims split and merge where boundaries meet; a regrouping without common ones is whole."""
    source, target = reads[0], writes[0]
    terms: tuple[list[str], list[str]] = ([], [])
    count = i = j = 0
    while i < len(source) or j < len(target):
        start = (i, j)
        left = right = 1
        while left != right or (i, j) == start:
            if left <= right and i < len(source) and (left < right or source[i] == 1 or j < len(target)):
                left, i = left * source[i], i + 1
            elif j < len(target):
                right, j = right * target[j], j + 1
            else:
                left, i = left * source[i], i + 1
        count = _group(source[start[0] : i], target[start[1] : j], terms, count)
    return f"{text(*terms[0])} -> {text(*terms[1])}"


def _group(source: Shape, target: Shape, terms: tuple[list[str], list[str]], count: int) -> int:
    """Letters for one run of dims whose products agree; returns the number of letters so far."""
    cuts = sorted({prod(dims[k:]) for dims in (source, target) for k in range(len(dims) + 1)}, reverse=True)
    nested = all(large % small == 0 for large, small in pairwise(cuts))
    for dims, term in zip((source, target), terms, strict=True):
        for k, size in enumerate(dims):
            if size == 1:
                term.append("1")
                continue
            if not nested:
                term.append(f"{'xy'[term is terms[1]]}{count}_{k}!")
                continue
            high, low = prod(dims[k:]), prod(dims[k + 1 :])
            inside = [cut for cut in cuts if low <= cut < high]
            parts = [f"g{count}_{int(cut)}" for cut in inside]
            term.append(parts[0] if len(parts) == 1 else f"({' '.join(parts)})")
    return count + 1
