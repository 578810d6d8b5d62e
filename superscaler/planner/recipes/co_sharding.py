"""Co-sharding: parts of a layer that run piece after piece on the same devices."""

from superscaler.errors import PlanError
from superscaler.planner.planner import Planner
from superscaler.planner.recipes.blocks import forward_of_layers


def co_shard_layers(p: Planner, pieces: int = 2) -> None:
    """Run each layer's heads and hidden units piece after piece, and again in its backward (SuperScaler's co-shard).

    Of what lies inside them one piece exists at a time, on all devices alike, without communication; the price is
    that they run forward twice (arXiv 2301.08984).

    Raises:
        PlanError: The model has no layers, or one has no axis with as many equal pieces.
    """
    layers = forward_of_layers(p)
    if not layers:
        raise PlanError(
            f"the model {p.graph.name!r} has no numbered modules (a ModuleList) to run piece after piece",
            where=p.speaker,
            remedy="choose blocks in a plan script with p.co_shard(selection, axis, pieces=2)",
        )
    for layer in layers:
        p.co_shard(layer, pieces=pieces)
