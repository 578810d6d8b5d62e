"""Rules that depend on the shapes or arguments of a call: each function returns a rule as text.

All take the operator and the shapes of the tensors it reads and writes.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod

from superscaler.ir.graph import Operator
from superscaler.ir.rules import Shape


def _letters(shape: Shape, prefix: str = "a") -> list[str]:
    """A letter per dim; dims of one element have none."""
    return ["1" if size == 1 else f"{prefix}{i}" for i, size in enumerate(shape)]


def _text(*dims: str) -> str:
    return " ".join(dims) or "."


def pointwise(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """Element by element, with torch's broadcasting."""
    out = _letters(writes[0])

    def aligned(shape: Shape) -> str:
        names = out[len(out) - len(shape) :]
        return _text(*("1" if size == 1 else name for size, name in zip(shape, names, strict=True)))

    return f"{', '.join(map(aligned, reads))} -> {', '.join(map(aligned, writes))}"


def any_piece(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """A tensor of one number: any piece of it can be made alone."""
    return f" -> {_text(*_letters(writes[0]))}"


def whole_result(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """A tensor made from nothing, whole: a piece would have to know where it lies."""
    return f" -> {_text(*(name if name == '1' else f'{name}!' for name in _letters(writes[0])))}"


def contract_dims(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """A sum over some dims: a cut of one of them leaves summands."""
    rank = len(reads[0])
    dims = operator.arguments[1] if len(operator.arguments) > 1 else None
    summed = {dim % rank for dim in (dims if dims else range(rank))} if rank else set()
    keep = len(operator.arguments) > 2 and operator.arguments[2]
    names = _letters(reads[0])
    out = [("1" if i in summed else name) for i, name in enumerate(names) if keep or i not in summed]
    return f"{_text(*names)} -> {_text(*out)}"


def keep_dim_whole(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """One dim is needed whole (softmax, slice, select); the others go element by element."""
    rank = len(reads[0])
    numbers = [
        argument
        for argument in operator.arguments
        if isinstance(argument, int) and not isinstance(argument, bool)
    ]
    dim = numbers[0] % rank if numbers else 0
    names = _letters(reads[0])
    whole = [f"{name}!" if i == dim and name != "1" else name for i, name in enumerate(names)]
    if len(writes[0]) < rank:
        out = [name for i, name in enumerate(names) if i != dim]
    else:
        fresh = "1" if writes[0][dim] == 1 else "z!"
        out = [
            (fresh if i == dim and writes[0][dim] != reads[0][dim] else name) for i, name in enumerate(names)
        ]
    return f"{', '.join([_text(*whole)] * len(reads))} -> {_text(*out)}"


def across_dim(position: int) -> Callable[[Operator, Sequence[Shape], Sequence[Shape]], str]:
    """The dim told by the argument at `position` is whole; tensors may differ in its size, or lack it."""

    def rule(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
        full = max((*reads, *writes), key=len)
        dim = (operator.arguments[position] if len(operator.arguments) > position else 0) % len(full)
        names = _letters(full)

        def term(shape: Shape, own: str) -> str:
            dims = names[:dim] + names[dim + 1 :]
            if len(shape) == len(full):
                dims.insert(dim, f"{own}!" if shape[dim] > 1 else "1")
            return _text(*dims)

        left = ", ".join(term(shape, f"r{i}") for i, shape in enumerate(reads))
        return f"{left} -> {', '.join(term(shape, f'w{i}') for i, shape in enumerate(writes))}"

    return rule


def join_dim(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """Concatenation: the joined dim is whole, the others go element by element."""
    rank = len(writes[0])
    dim = (operator.arguments[1] if len(operator.arguments) > 1 else 0) % rank
    names = _letters(writes[0])

    def term(shape: Shape, own: str) -> str:
        return _text(
            *(own if i == dim and shape[i] > 1 else "1" if shape[i] == 1 else n for i, n in enumerate(names))
        )

    return f"{', '.join(term(shape, f'j{i}!') for i, shape in enumerate(reads))} -> {term(writes[0], 'j!')}"


def move_dims(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """Transpose and permute."""
    names = _letters(reads[0])
    if operator.kind == "aten.permute":
        order = [dim % len(names) for dim in operator.arguments[1]]
    else:
        first, second = (dim % len(names) for dim in operator.arguments[1:3])
        order = list(range(len(names)))
        order[first], order[second] = order[second], order[first]
    return f"{_text(*names)} -> {_text(*(names[dim] for dim in order))}"


def stretch(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """Expand: a stretched dim appears in the result alone."""
    out = _letters(writes[0])
    offset = len(out) - len(reads[0])
    source = [("1" if size == 1 else out[offset + i]) for i, size in enumerate(reads[0])]
    return f"{_text(*source)} -> {_text(*out)}"


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
    return f"{_text(*terms[0])} -> {_text(*terms[1])}"


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
            letters = [f"g{count}_{cut}" for cut in inside]
            term.append(letters[0] if len(letters) == 1 else f"({' '.join(letters)})")
    return count + 1


def layer_norm(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """x[*b d], weight[d], bias[d] -> y[*b d], mean[*b 1], rstd[*b 1]."""
    normalized = [f"d{i}!" for i in range(len(operator.arguments[1]))]
    rows = [
        f"b{i}" if size != 1 else "1" for i, size in enumerate(reads[0][: len(reads[0]) - len(normalized)])
    ]
    affine = f", {_text(*normalized)}" * (len(reads) - 1)
    statistics = _text(*rows, *["1"] * len(normalized))
    return f"{_text(*rows, *normalized)}{affine} -> {_text(*rows, *normalized)}, {statistics}, {statistics}"


def layer_norm_backward(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """dy[*b d], x[*b d], mean, rstd, weight[d], bias[d] -> dx[*b d], dweight[d], dbias[d]."""
    normalized = [f"d{i}!" for i in range(len(operator.arguments[2]))]
    rows = [
        f"b{i}" if size != 1 else "1" for i, size in enumerate(reads[0][: len(reads[0]) - len(normalized)])
    ]
    whole, affine = _text(*rows, *normalized), _text(*normalized)
    statistics = _text(*rows, *["1"] * len(normalized))
    results = [whole, affine, affine]
    wanted = [term for term, needed in zip(results, operator.arguments[-1], strict=True) if needed]
    terms = [whole, whole, statistics, statistics] + [affine] * (len(reads) - 4)
    return f"{', '.join(terms)} -> {', '.join(wanted)}"
