"""Passes: how often a model runs through its layers in one forward, as AlphaFold 2 does when it recycles."""

from collections.abc import Mapping, Sequence

from superscaler.ir.graph import Graph, Operator, Phase


def find_passes(graph: Graph, layers: Sequence[str]) -> dict[str, int]:
    """The number of the pass of every operator within layers; a pass begins where the layers begin again.

    Args:
        graph: The traced step.
        layers: Module paths of the layers in order of use.

    Returns:
        Operator -> pass, from 0, for forward operators and the backward operators they gave rise to.
    """
    place = {name: number for number, name in enumerate(layers)}
    passes: dict[str, int] = {}
    by_origin: dict[int, int] = {}
    current, last = 0, -1
    for operator in graph.operators:
        number = layer_of(operator, place)
        if number is None:
            continue
        if operator.phase is Phase.FORWARD:
            current += number < last
            last = number
            passes[operator.name] = by_origin[operator.origin] = current
        elif operator.origin in by_origin:
            passes[operator.name] = by_origin[operator.origin]
    return passes


def layer_of(operator: Operator, place: Mapping[str, int]) -> int | None:
    """The number of the layer an operator lies in."""
    parts = operator.module.split(".")
    paths = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((place[path] for path in paths if path in place), None)
