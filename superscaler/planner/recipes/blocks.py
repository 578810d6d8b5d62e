"""Blocks: parts of the forward that recipes treat alike, such as layers."""

from collections.abc import Sequence

from superscaler.ir.graph import Operator, Phase
from superscaler.planner.layers import layers as find_layers
from superscaler.planner.planner import Planner
from superscaler.planner.selection import Selection


def forward_of_layers(p: Planner) -> list[Selection]:
    """The forward of each layer; layers are those stages are made of, as small as may be."""
    blocks: dict[str, list[Operator]] = {
        name: [] for name in find_layers(p.graph, p.axes, len(p.graph.operators))
    }
    for operator in p.graph.operators:
        parts = operator.module.split(".")
        paths = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
        for path in paths:
            if path in blocks and operator.phase is Phase.FORWARD:
                blocks[path].append(operator)
    return [selected(p, operators, f"layer {name}") for name, operators in blocks.items()]


def selected(p: Planner, operators: Sequence[Operator], description: str) -> Selection:
    """These operators, as a plan script selects them."""
    return Selection(p.graph, p.axes, tuple(operators), description)
