"""Convolutions of any number of dims, plain and transposed, and their gradients, each an operator of its own."""

from collections.abc import Sequence

from superscaler.ir.graph import Operator
from superscaler.ir.kind import Kind
from superscaler.ir.rules import Shape


def _terms(operator: Operator, x: Shape, weight: Shape, out: Shape) -> tuple[str, str, str, str]:
    """Terms of x, weight, bias and out: ``b k s, n k u, n -> b n t``, with ``groups`` in front of k and n.

    A transposed convolution holds its weight the other way round, and cannot tell from the shapes of a piece
    how many groups are in it.
    """
    stride, padding, dilation, transposed, _, groups = operator.arguments[-6:]
    group = "" if groups == 1 else "groups! " if transposed else "groups "
    k, n = (f"({group}{letter})" for letter in ("inside", "outside"))
    space = [
        _window(i, sizes, options, transposed)
        for i, (sizes, options) in enumerate(
            zip(
                zip(x[2:], weight[2:], out[2:], strict=True),
                zip(stride, padding, dilation, strict=True),
                strict=True,
            )
        )
    ]
    moved, kernel, swept = (" ".join(dim[side] for dim in space) for side in range(3))
    rows = f"{n} inside" if not transposed else f"{k} outside"
    return f"batch {k} {moved}", f"{rows} {kernel}", n, f"batch {n} {swept}"


def _window(i: int, sizes: Shape, options: Shape, transposed: bool) -> tuple[str, str, str]:
    """Tokens of one spatial dim in x, weight and out: side by side windows may be cut, overlapping ones not."""
    (x, kernel, out), (stride, padding, dilation) = sizes, options
    small, large = (out, x) if not transposed else (x, out)
    if stride == kernel and padding == 0 and (kernel == 1 or dilation == 1) and small * kernel == large:
        one, whole = f"s{i}", f"u{i}!"
        windows = f"({one} {whole})" if kernel > 1 else one
        return (windows, whole, one) if not transposed else (one, whole, windows)
    return f"x{i}!", f"u{i}!", f"y{i}!"


def _convolution(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    x, weight, bias, out = _terms(operator, reads[0], reads[1], writes[0])
    return f"{x}, {weight}{f', +{bias}' if len(reads) > 2 else ''} -> {out}"


def _input_gradient(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    x, weight, _, out = _terms(operator, writes[0], reads[1], reads[0])
    return f"{out}, {weight} -> {x}"


def _weight_gradient(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    x, weight, _, out = _terms(operator, reads[1], writes[0], reads[0])
    return f"{out}, {x} -> {weight}"


CONVOLUTIONS = {
    "aten.convolution": Kind(_convolution, "ops.convolution", flops_per_point=2),
    "convolution_input_gradient": Kind(_input_gradient, "ops.convolution_input_gradient", shape_argument=2, flops_per_point=2),
    "convolution_weight_gradient": Kind(_weight_gradient, "ops.convolution_weight_gradient", shape_argument=2, flops_per_point=2),
}  # fmt: skip
