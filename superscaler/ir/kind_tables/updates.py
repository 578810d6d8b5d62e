"""The update: an operator per optimizer, and numbers made of all gradients (`superscaler.ir.update`)."""

from collections.abc import Sequence

from superscaler.ir.graph import Operator
from superscaler.ir.kind import Kind
from superscaler.ir.optimizers import MASTER, OPTIMIZERS
from superscaler.ir.rules import Shape


def _like_written(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """Element by element over tensors of the result's shape; all others are single numbers."""
    terms = ["*p" if shape == writes[0] else "." for shape in reads]
    return f"{', '.join(terms)} -> {', '.join(['*p'] * len(writes))}"


def _numbers(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    return f"{', '.join(['.'] * len(reads))} -> {', '.join(['.'] * len(writes))}"


UPDATES = {
    **{
        kind: Kind(_like_written, f"ops.{kind}", ("", *optimizer.states, MASTER))
        for kind, optimizer in OPTIMIZERS.items()
    },
    "squared_norm": Kind("*p -> .", "ops.squared_norm"),
    "count_nonfinite": Kind("*p -> .", "ops.count_nonfinite"),
    "total": Kind(_numbers, "ops.total", linear=True),
    "gradient_norm": Kind(_numbers, "ops.gradient_norm"),
    "clip_coefficient": Kind(_numbers, "ops.clip_coefficient"),
    "loss_scale": Kind(_numbers, "ops.loss_scale"),
    "overflows": Kind(_numbers, "ops.overflows"),
    "unscaled_norm": Kind(_numbers, "ops.unscaled_norm"),
    "unscale": Kind(_numbers, "ops.unscale"),
    "inverse_scale": Kind(_numbers, "ops.inverse_scale"),
    "count_updates": Kind(_numbers, "ops.count_updates"),
    "next_loss_scale": Kind(_numbers, "ops.next_loss_scale", ("", "good_steps")),
}
