"""Reasons: why a communication line is there, as the comment behind it says it."""

import re

from superscaler.codegen.program import Collective
from superscaler.codegen.stage import Stage
from superscaler.ir.axes import Axis
from superscaler.planner.steps import StepKind


def reason(stage: Stage, instruction: Collective) -> str:
    """Why a collective is needed: ``sum over tp, which cuts heads``."""
    step = instruction.step
    fine = stage.plan.placed.axes.fine(stage.value(instruction.read).tensor)
    place = axis_name(fine[step.dim]) if 0 <= step.dim < len(fine) else ""
    cut = summed_axes(stage, stage.value(instruction.read).tensor, step.axis)
    because = f", which cuts {', '.join(cut)}" if cut else ""
    match step.kind:
        case StepKind.ALL_REDUCE:
            word = {"sum": "sum", "max": "largest", "logsumexp": "log-sum-exp"}[step.before.reducer]
            return f"{word} over {step.axis}{because}"
        case StepKind.REDUCE_SCATTER:
            return f"sum over {step.axis}{because}; keep a piece of {place}"
        case StepKind.ALL_GATHER:
            return f"join {place}, cut by {step.axis}"
        case _:
            return f"{step.axis} cuts {place} instead of {axis_name(fine[step.from_dim])}"


def summed_axes(stage: Stage, tensor: str, over: str) -> list[str]:
    """The model's axes that `over` cuts in the operator that wrote `tensor`, and that the tensor lacks."""
    writer = stage.graph.writer.get(tensor)
    if writer is None:
        return []
    placed = stage.plan.placed
    present = {axis.index for axis in placed.axes.fine(tensor)}
    letters = placed.axes.letters[writer.name]
    return list(
        dict.fromkeys(
            axis_name(axis)
            for (letter, index), names in placed.placements[writer.name].cuts
            if over in names
            for axis in letters[letter]
            if axis.index == index and index not in present
        )
    )


def axis_name(axis: Axis) -> str:
    """The axis with layer numbers left out: ``mlp.up.out``."""
    return re.sub(r"^.*\.\d+\.", "", axis.name)
