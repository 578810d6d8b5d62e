"""Reading and writing at positions that a tensor tells: the dim that is looked into is whole."""

from collections.abc import Sequence

from superscaler.ir.graph import Operator, Ref
from superscaler.ir.kind import Kind
from superscaler.ir.rules import Shape
from superscaler.ir.shape_rules import all_whole, argument, broadcast, letters, text


def _gather(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """x, index -> shaped like index: positions are looked up one by one."""
    source, index = (text(*dims) for dims in _along(operator.arguments[1], reads[0], reads[1]))
    return f"{source}, {index} -> {index}"


def _scatter(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """x, index, src -> shaped like x: later positions write over earlier ones, so all are needed."""
    target, index = _along(operator.arguments[1], reads[0], reads[1], "!")
    return _with_source(target, index, reads[1:])


def _scatter_add(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """x, index, src -> shaped like x: what positions add comes in summands."""
    target, index = _along(operator.arguments[1], reads[0], reads[1])
    return f"+{_with_source(target, index, reads[1:])}"


def _scatter_reduce(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """x, index, src -> shaped like x; only a sum comes in summands."""
    adds = operator.arguments[4] == "sum" and operator.keyword("include_self", True)
    return (_scatter_add if adds else _scatter)(operator, reads, writes)


def _with_source(target: list[str], index: list[str], shapes: Sequence[Shape]) -> str:
    """The rule of a scatter; where the index leaves out a part of the source, both are whole."""
    left = [text(*target), text(*index)]
    for own in shapes[1:]:
        source = list(index)
        for i, (count, size) in enumerate(zip(shapes[0], own, strict=True)):
            if size != count:
                source[i] = f"s{i}!"
                target[i], index[i] = (_mark(name.rstrip("!"), "!") for name in (target[i], index[i]))
        left = [text(*target), text(*index), text(*source)]
    return f"{', '.join(left)} -> {left[0]}"


def _along(dim: int, full: Shape, index: Shape, mark: str = "") -> tuple[list[str], list[str]]:
    """Dims of a tensor and of an index into its `dim`; where the index leaves out a part of another dim, both are whole."""
    target, positions = letters(full), letters(index, "i")
    for i, (size, count) in enumerate(zip(full, index, strict=True)):
        if full and i == dim % len(full):
            target[i], positions[i] = _mark(target[i], "!"), _mark(positions[i], mark)
        elif size == count:
            positions[i] = target[i]
        else:
            target[i], positions[i] = _mark(target[i], "!"), _mark(positions[i], "!")
    return target, positions


def _mark(name: str, mark: str) -> str:
    return name if name == "1" else name + mark


def _index(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """x, indices -> the indexed dims make room for the dims of the indices."""
    source, positions, result = _advanced(operator.arguments[1], reads[0], reads[1:], "")
    return f"{source}, {', '.join(positions)} -> {text(*result)}"


def _index_put(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """x, indices, values -> shaped like x: what accumulates comes in summands, what is written over is needed whole."""
    adds = argument(operator, 3, False)
    target, positions, result = _advanced(operator.arguments[1], reads[0], reads[1:-1], "" if adds else "!")
    values = broadcast(reads[-1], result)
    return f"{'+' if adds else ''}{target}, {', '.join(positions)}, {values} -> {target}"


def _advanced(
    indices: Sequence[Ref | None], full: Shape, shapes: Sequence[Shape], mark: str
) -> tuple[str, list[str], list[str]]:
    """Terms of x, of each index, and the dims of what ``x[indices]`` gives."""
    names = letters(full)
    indexed = [i for i, index in enumerate(indices) if index is not None]
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    together = [_mark(name, mark) for name in letters(tuple(map(max, zip(*padded, strict=True))), "i")]
    rest = [name for i, name in enumerate(names) if i not in indexed]
    adjacent = indexed[-1] - indexed[0] == len(indexed) - 1
    at = indexed[0] if adjacent else 0
    source = text(*(_mark(name, "!") if i in indexed else name for i, name in enumerate(names)))
    return source, [broadcast(shape, together) for shape in shapes], [*rest[:at], *together, *rest[at:]]


def _index_select(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """x, index[i] -> the dim of x becomes i."""
    source, picked, positions = _along_row(operator.arguments[1], reads[0], reads[1], "")
    return f"{source}, {positions} -> {picked}"


def _index_add(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """x, index[i], src with i in the place of the dim -> shaped like x, in summands."""
    target, source, positions = _along_row(operator.arguments[1], reads[0], reads[1], "")
    return f"+{target}, {positions}, {source} -> {target}"


def _index_copy(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """x, index[i], src (or a number) -> shaped like x."""
    target, source, positions = _along_row(operator.arguments[1], reads[0], reads[1], "!")
    rest = "".join(f", {source if shape else '.'}" for shape in reads[2:])
    return f"{target}, {positions}{rest} -> {target}"


def _along_row(dim: int, full: Shape, index: Shape, mark: str) -> tuple[str, str, str]:
    """Terms of x with its dim whole, of x with an index in the place of the dim, and of the index."""
    names = letters(full)
    position = text(*(_mark(name, mark) for name in letters(index, "i")))
    at = dim % len(full)
    target = [_mark(name, "!") if i == at else name for i, name in enumerate(names)]
    moved = [(position if index else "1") if i == at else name for i, name in enumerate(names)]
    return text(*target), text(*moved), position


def _put(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """x, index, src -> shaped like x, which is seen as one row."""
    adds = argument(operator, 3, False)
    target = text(*(_mark(name, "!") for name in letters(reads[0])))
    positions = text(*(_mark(name, "" if adds else "!") for name in letters(reads[1], "i")))
    return f"{'+' if adds else ''}{target}, {positions}, {positions} -> {target}"


def _search(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """Sorted rows [*a k], values [*a v] -> shaped like the values; one row serves values of any shape."""
    if len(reads[0]) == 1:
        return "k!, *v -> *v"
    return "*a k!, *a v -> *a v"


INDEXING = {
    "aten.embedding_dense_backward": Kind("*b d, *b -> vocab! d"),
    "aten.gather": Kind(_gather, "torch.gather"),
    "aten.scatter.src": Kind(_scatter, "torch.scatter"),
    "aten.scatter.value": Kind(_scatter, "torch.scatter"),
    "aten.scatter_add": Kind(_scatter_add, "torch.scatter_add"),
    "aten.index.Tensor": Kind(_index),
    "aten.index_put": Kind(_index_put),
    "aten._unsafe_index.Tensor": Kind(_index),
    "aten._unsafe_index_put": Kind(_index_put),
    "aten.scatter_reduce.two": Kind(_scatter_reduce, "torch.scatter_reduce"),
    "aten.index_select": Kind(_index_select, "torch.index_select"),
    "aten.index_add": Kind(_index_add, "torch.index_add"),
    "aten.index_copy": Kind(_index_copy, "torch.index_copy"),
    "aten.index_fill.int_Scalar": Kind(_index_copy, "torch.index_fill"),
    "aten.index_fill.int_Tensor": Kind(_index_copy, "torch.index_fill"),
    "aten.take": Kind(lambda o, reads, _: f"{' '.join(f'a{i}!' for i in range(len(reads[0]))) or '.'}, *i -> *i", "torch.take"),
    "aten.put": Kind(_put),
    "aten.masked_scatter": Kind(all_whole, "torch.masked_scatter"),
    "aten.bucketize.Tensor": Kind("*v, k! -> *v", "torch.bucketize"),
    "aten.searchsorted.Tensor": Kind(_search, "torch.searchsorted"),
}  # fmt: skip
