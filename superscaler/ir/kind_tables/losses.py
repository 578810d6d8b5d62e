"""Losses. A mean is taken apart into a sum and a division (`superscaler.ir.import_fx`); one that is not is whole."""

from collections.abc import Sequence

from superscaler.ir.graph import Operator
from superscaler.ir.kind import Kind
from superscaler.ir.rules import Shape
from superscaler.ir.shape_rules import argument, broadcast, letters

NONE, MEAN, SUM = 0, 1, 2
"""torch's numbers for the three reductions."""

REDUCTION_AT = {
    "aten.mse_loss": 2, "aten.mse_loss_backward": 3,
    "aten.smooth_l1_loss": 2, "aten.smooth_l1_loss_backward": 3,
    "aten.huber_loss": 2, "aten.huber_loss_backward": 3,
    "aten.soft_margin_loss": 2, "aten.soft_margin_loss_backward": 3,
    "aten.binary_cross_entropy": 3, "aten.binary_cross_entropy_backward": 4,
    "aten.binary_cross_entropy_with_logits": 4,
    "aten.nll_loss_forward": 3, "aten.nll_loss_backward": 4,
    "aten.nll_loss2d_forward": 3, "aten.nll_loss2d_backward": 4,
}  # fmt: skip
"""Losses and their gradients, and which argument tells the reduction."""

CLASS_LOSSES = frozenset(kind for kind in REDUCTION_AT if kind.startswith("aten.nll"))
"""Losses whose mean divides by the sum of the weights of the classes, which is their second result."""


def _elementwise(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """Element by element, or in summands where the elements are summed."""
    rank = max(map(len, reads))
    full = tuple(
        max(shape[i - rank] if len(shape) >= rank - i else 1 for shape in reads) for i in range(rank)
    )
    reduction = argument(operator, REDUCTION_AT[operator.kind], MEAN)
    names = [f"{name}!" if reduction == MEAN and name != "1" else name for name in letters(full)]
    return (
        f"{', '.join(broadcast(s, names) for s in reads)} -> {', '.join(broadcast(s, names) for s in writes)}"
    )


def _class_terms(logits: Shape, reduction: int) -> tuple[str, str]:
    """Terms of the log-probabilities, whose classes are whole, and of the targets."""
    mark = "!" if reduction == MEAN else ""
    if len(logits) == 1:
        return "class!", "."
    space = " ".join(f"s{i}{mark}" for i in range(len(logits) - 2))
    return f"n{mark} class! {space}", f"n{mark} {space}"


def _nll_loss(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """Log-probabilities [n, class, *s], targets [n, *s], weight [class] -> the loss and the sum of weights."""
    logits, target = _class_terms(reads[0], operator.arguments[3])
    weight = ", class!" if len(reads) > 2 else ""
    return f"{logits}, {target}{weight} -> {target if operator.arguments[3] == NONE else '.'}, ."


def _nll_loss_backward(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """The gradient of the loss, then what the loss read, and the sum of weights -> log-probabilities' gradient."""
    logits, target = _class_terms(reads[1], operator.arguments[4])
    weight = ", class!" if len(reads) > 4 else ""
    return f"{target if operator.arguments[4] == NONE else '.'}, {logits}, {target}{weight}, . -> {logits}"


LOSSES = {
    **{kind: Kind(_elementwise, flops_per_point=3) for kind in REDUCTION_AT if kind not in CLASS_LOSSES},
    "aten.nll_loss_forward": Kind(_nll_loss, outputs=("", "weight")),
    "aten.nll_loss2d_forward": Kind(_nll_loss, outputs=("", "weight")),
    "aten.nll_loss_backward": Kind(_nll_loss_backward),
    "aten.nll_loss2d_backward": Kind(_nll_loss_backward),
}
