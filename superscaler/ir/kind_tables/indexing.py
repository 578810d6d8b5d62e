"""Reading and writing at positions that a tensor tells: the dim that is looked into is whole."""

from collections.abc import Sequence

from superscaler.ir.graph import Operator, Ref
from superscaler.ir.kind import Kind
from superscaler.ir.rules import Shape
from superscaler.ir.shape_rules import argument, broadcast, letters, text


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


INDEXING = {
    "aten.embedding_dense_backward": Kind("*b d, *b -> vocab! d"),
    "aten.gather": Kind(_gather, "torch.gather"),
    "aten.scatter.src": Kind(_scatter, "torch.scatter"),
    "aten.scatter.value": Kind(_scatter, "torch.scatter"),
    "aten.scatter_add": Kind(_scatter_add, "torch.scatter_add"),
    "aten.index.Tensor": Kind(_index),
    "aten.index_put": Kind(_index_put),
}  # fmt: skip
