"""Views, pieces and joins of tensors, and tensors made from nothing."""

from collections.abc import Sequence

from superscaler.ir.graph import Operator
from superscaler.ir.kind import Kind
from superscaler.ir.rules import Shape
from superscaler.ir.shape_rules import (
    across,
    across_dim,
    all_whole,
    any_piece,
    argument,
    keep_dim,
    letters,
    move_dims,
    regroup,
    stretch,
    text,
)


def _pad(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """The padded dims are whole; the last come first in the list of widths."""
    rank, widths = len(reads[0]), operator.arguments[1]
    padded = {rank - 1 - i // 2 for i, width in enumerate(widths) if width}
    return across(rank, padded, reads, writes)


def _roll(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """The rolled dims are whole; without dims the tensor is rolled as one row."""
    dims = {dim % len(reads[0]) for dim in argument(operator, 2) or range(len(reads[0]))}
    return _keep(reads[0], dims)


def _flip(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    return _keep(reads[0], {dim % len(reads[0]) for dim in operator.arguments[1]})


def _keep(shape: Shape, dims: set[int]) -> str:
    names = text(
        *(f"{name}!" if i in dims and name != "1" else name for i, name in enumerate(letters(shape)))
    )
    return f"{names} -> {names}"


def _repeat(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """A repeated dim is (times, own): either may be cut."""
    missing = len(writes[0]) - len(reads[0])
    known = (1,) * missing + tuple(reads[0])
    names = letters(known)
    out = [
        name if size == own else f"t{i}" if own == 1 else f"(t{i} {name})"
        for i, (name, own, size) in enumerate(zip(names, known, writes[0], strict=True))
    ]
    return f"{text(*names[missing:])} -> {text(*out)}"


def _diagonal(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """Two dims become one, the last; all three are whole."""
    shift = int(operator.kind != "aten.diagonal")
    full = max((*reads, *writes), key=len)
    dims = {argument(operator, 2 + shift, 0) % len(full), argument(operator, 3 + shift, 1) % len(full)}
    names = [f"{name}!" if i in dims and name != "1" else name for i, name in enumerate(letters(full))]
    rest = [name for i, name in enumerate(names) if i not in dims]

    def term(shape: Shape) -> str:
        return (
            text(*names) if len(shape) == len(full) else text(*rest, "1" if shape[-1] == 1 else "diagonal!")
        )

    return f"{', '.join(map(term, reads))} -> {', '.join(map(term, writes))}"


def _unfold(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """A dim becomes a dim of windows, and their elements come last; all are whole."""
    full, windows = min((reads[0], writes[0]), key=len), max((reads[0], writes[0]), key=len)
    dim = operator.arguments[1 if operator.kind == "aten.unfold" else 2] % len(full)
    names = letters(full)
    one = text(*(f"{name}!" if i == dim and name != "1" else name for i, name in enumerate(names)))
    fresh = ["1" if windows[i] == 1 else f"w{i}!" for i in (dim, len(full))]
    many = text(*names[:dim], fresh[0], *names[dim + 1 :], fresh[1])
    return f"{one} -> {many}" if operator.kind == "aten.unfold" else f"{many} -> {one}"


SHAPES = {
    "reshape": Kind(regroup, "torch.reshape", shape_argument=1, linear=True),
    "aten.t": Kind("a b -> b a", "torch.t", linear=True),
    "aten.transpose.int": Kind(move_dims, "torch.transpose", linear=True),
    "aten.permute": Kind(move_dims, "torch.permute", linear=True),
    "aten.expand": Kind(stretch, "torch.Tensor.expand", shape_argument=1),
    "repeat": Kind(_repeat, "ops.repeat", shape_argument=1),
    "as_strided": Kind(all_whole, "ops.as_strided"),
    "as_strided_scatter": Kind(all_whole, "ops.as_strided_scatter"),
    "aten.slice.Tensor": Kind(keep_dim(1, 0), "torch.ops.aten.slice.Tensor"),
    "aten.select.int": Kind(keep_dim(1), "torch.select"),
    "aten.slice_backward": Kind(across_dim(2), "torch.ops.aten.slice_backward", shape_argument=1),
    "aten.select_backward": Kind(across_dim(2), "torch.ops.aten.select_backward", shape_argument=1),
    "aten.slice_scatter": Kind(across_dim(2), "torch.slice_scatter"),
    "aten.select_scatter": Kind(across_dim(2), "torch.select_scatter"),
    "aten.split.Tensor": Kind(across_dim(2), "torch.split"),
    "aten.split_with_sizes": Kind(across_dim(2), "torch.split"),
    "aten.unsafe_split.Tensor": Kind(across_dim(2), "torch.split"),
    "aten.unsafe_split_with_sizes": Kind(across_dim(2), "torch.split"),
    "aten.unbind.int": Kind(across_dim(1), "torch.unbind"),
    "aten.stack": Kind(across_dim(1), "torch.stack", linear=True),
    "aten.cat": Kind(across_dim(1), "torch.cat"),
    "aten.constant_pad_nd": Kind(_pad, "torch.constant_pad_nd"),
    "aten.roll": Kind(_roll, "torch.roll", linear=True),
    "aten.flip": Kind(_flip, "torch.flip", linear=True),
    "aten.diagonal": Kind(_diagonal, "torch.diagonal"),
    "aten.diagonal_backward": Kind(_diagonal, shape_argument=1),
    "aten.diagonal_scatter": Kind(_diagonal, "torch.diagonal_scatter"),
    "aten.unfold": Kind(_unfold, "torch.Tensor.unfold"),
    "aten.unfold_backward": Kind(_unfold, shape_argument=1),
    "aten.view_as_complex": Kind("*b pair! -> *b", "torch.view_as_complex"),
    "aten.view_as_real": Kind("*b -> *b pair!", "torch.view_as_real"),
    "aten.trace": Kind("i! j! -> .", "torch.trace"),
    "aten.tril": Kind("*b i! j! -> *b i j", "torch.tril"),
    "aten.triu": Kind("*b i! j! -> *b i j", "torch.triu"),
    # made from nothing
    "aten.arange": Kind(all_whole, "torch.arange"),
    "aten.arange.start": Kind(all_whole, "torch.arange"),
    "aten.arange.start_step": Kind(all_whole, "torch.arange"),
    "aten.eye": Kind(all_whole, "torch.eye"),
    "aten.eye.m": Kind(all_whole, "torch.eye"),
    "aten.linspace": Kind(all_whole, "torch.linspace"),
    "aten.tril_indices": Kind(all_whole, "torch.tril_indices"),
    "aten.triu_indices": Kind(all_whole, "torch.triu_indices"),
    "full": Kind(any_piece, "torch.full", shape_argument=0),
}  # fmt: skip
