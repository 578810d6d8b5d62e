"""Reasons: why a value is communicated, in the words of the model's axes."""

import re

from superscaler.ir.axes import Axis
from superscaler.planner.placement import PlacedGraph
from superscaler.planner.steps import Step, StepKind


def reason(placed: PlacedGraph, tensor: str, step: Step) -> str:
    """Why a collective on `tensor` is needed: ``sum over tp, which cuts heads``."""
    fine = placed.axes.fine(tensor)
    place = axis_name(fine[step.dim]) if 0 <= step.dim < len(fine) else ""
    cut = summed_axes(placed, tensor, step.axis)
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


def summed_axes(placed: PlacedGraph, tensor: str, over: str) -> list[str]:
    """The model's axes that `over` cuts in the operator that wrote `tensor`, and that the tensor lacks."""
    writer = placed.graph.writer.get(tensor)
    if writer is None:
        return []
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
