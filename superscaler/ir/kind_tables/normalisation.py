"""Normalisations and their gradients: the normalised dims are whole; rows, groups or channels may be cut."""

from collections.abc import Sequence

from superscaler.ir.graph import Operator
from superscaler.ir.kind import Kind
from superscaler.ir.rules import Shape
from superscaler.ir.shape_rules import letters, text


def _layer_norm(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """x[*b d], weight[d], bias[d] -> y[*b d], mean[*b 1], rstd[*b 1]."""
    normalized = [f"d{i}!" for i in range(len(operator.arguments[1]))]
    rows = letters(reads[0][: len(reads[0]) - len(normalized)], "b")
    affine = f", {text(*normalized)}" * (len(reads) - 1)
    statistics = text(*rows, *["1"] * len(normalized))
    return f"{text(*rows, *normalized)}{affine} -> {text(*rows, *normalized)}, {statistics}, {statistics}"


def _layer_norm_backward(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """dy[*b d], x[*b d], mean, rstd, weight[d], bias[d] -> dx[*b d], dweight[d], dbias[d]."""
    normalized = [f"d{i}!" for i in range(len(operator.arguments[2]))]
    rows = letters(reads[0][: len(reads[0]) - len(normalized)], "b")
    whole, affine = text(*rows, *normalized), text(*normalized)
    statistics = text(*rows, *["1"] * len(normalized))
    wanted = [
        term for term, needed in zip((whole, affine, affine), operator.arguments[-1], strict=True) if needed
    ]
    terms = [whole, whole, statistics, statistics] + [affine] * (len(reads) - 4)
    return f"{', '.join(terms)} -> {', '.join(wanted)}"


def _group_norm(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """x[b (g c) *s], weight[(g c)], bias -> y, mean[b g], rstd[b g]."""
    space = " ".join(f"s{i}!" for i in range(len(reads[0]) - 2))
    affine = ", (groups channel!)" * (len(reads) - 1)
    x = f"batch (groups channel!) {space}"
    return f"{x}{affine} -> {x}, batch groups, batch groups"


def _group_norm_backward(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """dy, x, mean, rstd, weight -> dx, dweight, dbias."""
    x = f"batch (groups channel!) {' '.join(f's{i}!' for i in range(len(reads[0]) - 2))}"
    affine = "(groups channel!)"
    wanted = [
        term for term, needed in zip((x, affine, affine), operator.keyword("wanted"), strict=True) if needed
    ]
    return f"{x}, {x}, batch groups, batch groups{f', {affine}' * (len(reads) - 4)} -> {', '.join(wanted)}"


def _batch_norm(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """x[b c *s], then vectors [c]: statistics are over b and s, so only channels are cut."""
    x = _batch_norm_input(reads[0], whole=True)
    return f"{x}{', channel' * (len(reads) - 1)} -> {x}{', channel' * (len(writes) - 1)}"


def _batch_norm_given(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """X (or dy and x), then vectors [c] -> x: with given statistics every element is on its own."""
    inputs = sum(len(shape) > 1 for shape in reads)
    return f"{', '.join(['n c *s'] * inputs + ['c'] * (len(reads) - inputs))} -> n c *s"


def _batch_norm_backward(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """dy, x, then vectors [c] -> dx, dweight, dbias; with known statistics batch and space are contracted."""
    x = _batch_norm_input(reads[0], whole=operator.arguments[7])
    wanted = [
        term for term, needed in zip((x, "channel", "channel"), operator.arguments[-1], strict=True) if needed
    ]
    return f"{x}, {x}{', channel' * (len(reads) - 2)} -> {', '.join(wanted)}"


def _batch_norm_input(shape: Shape, *, whole: bool) -> str:
    mark = "!" if whole else ""
    return " ".join([f"batch{mark}", "channel", *(f"s{i}{mark}" for i in range(len(shape) - 2))])


def _weight_norm(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """Every tensor is shaped like v, or has one element in each dim but `dim`, which alone may be cut."""
    full = max((*reads, *writes), key=sum)
    dim = (operator.arguments[-1] if isinstance(operator.arguments[-1], int) else 0) % len(full)

    def term(shape: Shape) -> str:
        return text(
            *("1" if size == 1 else f"a{i}" if i == dim else f"a{i}!" for i, size in enumerate(shape))
        )

    return f"{', '.join(map(term, reads))} -> {', '.join(map(term, writes))}"


NORMALISATION = {
    "aten.native_layer_norm": Kind(_layer_norm, "torch.native_layer_norm", ("", "mean", "rstd"), flops_per_point=8),
    "aten.native_layer_norm_backward": Kind(_layer_norm_backward, "ops.layer_norm_backward", ("dx", "dweight", "dbias"), flops_per_point=12),
    "group_norm": Kind(_group_norm, "ops.group_norm", ("", "mean", "rstd"), flops_per_point=8),
    "group_norm_backward": Kind(_group_norm_backward, "ops.group_norm_backward", ("dx", "dweight", "dbias"), flops_per_point=12),
    # superscaler.ir.batch_norm: the batch may be cut, since its statistics are sums
    "channel_sums": Kind("n c *s -> c", "ops.channel_sums", linear=True),
    "channel_squares": Kind("n c *s, c -> c", "ops.channel_squares", flops_per_point=3),
    "batch_norm": Kind(_batch_norm_given, "ops.batch_norm", flops_per_point=4),
    "batch_norm_sums": Kind("n c *s, n c *s, c, c -> c, c", "ops.batch_norm_sums", ("dy", "dy_xhat"), flops_per_point=5),
    "batch_norm_input_gradient": Kind(_batch_norm_given, "ops.batch_norm_input_gradient", flops_per_point=6),
    # torch's own, where a model calls it by another way than F.batch_norm
    "aten.native_batch_norm": Kind(_batch_norm, "torch.native_batch_norm", ("", "mean", "rstd"), flops_per_point=8),
    "aten._native_batch_norm_legit_functional": Kind(_batch_norm, outputs=("", "mean", "rstd", "running_mean", "running_var"), flops_per_point=8),
    "aten.native_batch_norm_backward": Kind(_batch_norm_backward, outputs=("dx", "dweight", "dbias"), flops_per_point=12),
    "aten._weight_norm_interface": Kind(_weight_norm, outputs=("", "norm"), flops_per_point=4),
    "aten._weight_norm_interface_backward": Kind(_weight_norm, outputs=("dv", "dg"), flops_per_point=8),
}  # fmt: skip
