"""Layer places: on which stages the layers of a model run, and with how many operators of each phase."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from superscaler.ir.graph import Phase
from superscaler.planner.layers import layers
from superscaler.planner.plan import Plan


@dataclass(frozen=True, slots=True)
class LayerPlace:
    """Where one layer runs."""

    layer: str
    """Module path; empty for what lies outside of modules."""
    operators: Mapping[int, Mapping[Phase, int]]
    """Stage -> how many operators of each phase."""


def layer_places(plan: Plan) -> tuple[LayerPlace, ...]:
    """The layers in order of use, and the modules outside of them.

    A layer is what a pipeline would be cut between: a numbered module. What is not numbered counts as its outermost
    module that holds no layers.
    """
    placed = plan.placed
    stages = plan.materialized.stages
    number_of = {mesh: number for number, mesh in enumerate(stages)}
    numbered = layers(plan.graph, placed.axes, len(stages))
    holding = {layer[:end] for layer in numbered for end, letter in enumerate(layer) if letter == "."}
    found: dict[str, dict[int, Counter[Phase]]] = {}
    for operator in plan.graph.operators:
        layer = _layer(operator.module, numbered, holding)
        stage = number_of[placed.placements[operator.name].mesh]
        counts = found.setdefault(layer, {}).setdefault(stage, Counter())
        counts[placed.phases[operator.name]] += 1
    return tuple(LayerPlace(layer, dict(sorted(counts.items()))) for layer, counts in found.items())


def _layer(module: str, numbered: Iterable[str], holding: set[str]) -> str:
    """The shortest part of a module's path that is a layer or holds none."""
    parts = module.split(".")
    for end in range(1, len(parts)):
        path = ".".join(parts[:end])
        if path in numbered or path not in holding:
            return path
    return module
