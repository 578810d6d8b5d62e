"""Prices of layers: what each layer of a model takes under one way to cut it, found on a few of them.

The shortened graph is planned with a stage per layer (or per layer and pass), so that all that a plan does to a layer
is priced: what it computes again, what it gathers, what it keeps. A layer that stands for others lends them its price.
What lies before the first layer counts with it, what lies behind the last with that; but for what all rows of devices
do together, which has a price of its own.
"""

from collections.abc import Sequence
from dataclasses import replace

from superscaler.ir.axes import Axes
from superscaler.ir.shorten import ShortGraph
from superscaler.planner.cluster import Cluster, Nodes
from superscaler.planner.plan import place
from superscaler.planner.planner import Planner
from superscaler.planner.recipes import apply_recipes, parse_plan, recipe
from superscaler.planner.recipes.pipelines import ROWS, place_stages
from superscaler.planner.recipes.vocabulary import cut_vocabulary, vocabulary_stages
from superscaler.planner.schedules import gpipe
from superscaler.search.priced_placement import LayerPrice, PricedPlacement
from superscaler.search.way import Form, Way

SCHEDULES = {Form.CHAIN: "gpipe", Form.PASSES: "3f1b", Form.INTERLACED: "interlaced"}
"""Per form a schedule that has its stages."""


def layer_prices(
    short: ShortGraph, axes: Axes, cluster: Cluster, nodes: Nodes, way: Way, micro_batches: int
) -> tuple[LayerPrice, ...]:
    """The price of every layer of the whole model, in order.

    Args:
        short: The model's graph, with few of its layers.
        axes: Of the short graph.
        cluster: Whose transport holds.
        nodes: The nodes whose devices run the layers.
        way: How they do.
        micro_batches: Into how many parts one replica cuts the batch.

    Raises:
        PlanError: The layers cannot be cut this way.
    """
    layers = list(short.stands_for)
    count = len(layers)
    words = [f"pp={count}", f"layers={'+'.join('1' * count)}"] if count > 1 else []
    words += [f"micro_batches={micro_batches}", f"schedule={SCHEDULES[way.form]}", *way.words]
    own = replace(nodes, count=count, devices_per_node=way.num_devices)
    small = replace(cluster, nodes=(own,))
    _, materialized = place(short.graph, small, recipe(",".join(words)), axes)
    placed = PricedPlacement(materialized, small)
    rows = materialized.rows
    wide = {mesh for mesh in materialized.stages if len(mesh.devices) > way.num_devices}
    priced = {
        layer: placed.price(number, [s for s in row.stages if materialized.stages[s] not in wide])
        for number, (layer, row) in enumerate(zip(layers, rows, strict=True))
    }
    by_layer = {copy: priced[layer] for layer, copies in short.stands_for.items() for copy in copies}
    return tuple(by_layer[layer] for layer in _in_order(short))


def _in_order(short: ShortGraph) -> list[str]:
    """All layers of the whole model; copies follow each other in turn."""
    order: list[str] = []
    periods: list[Sequence[str]] = []
    for copies in short.stands_for.values():
        if len(copies) > 1 and (not periods or len(periods[-1]) == len(copies)):
            periods.append(copies)
            continue
        order += [layer for period in zip(*periods, strict=True) for layer in period]
        periods = [copies] if len(copies) > 1 else []
        order += copies if len(copies) == 1 else ()
    return order + [layer for period in zip(*periods, strict=True) for layer in period]


def vocabulary_price(
    short: ShortGraph, axes: Axes, cluster: Cluster, way: Way, rows: int, micro_batches: int
) -> LayerPrice:
    """What all rows of devices do together in an interlaced pipeline: the embedding and the head.

    Args:
        short: The model's graph, with few of its layers.
        axes: Of the short graph.
        cluster: All its devices take part.
        way: How the layers run.
        rows: Rows of devices.
        micro_batches: Into how many parts one replica cuts the batch.

    Raises:
        PlanError: There is no vocabulary that can be cut so.
    """
    dp = cluster.num_devices // (rows * way.num_devices)
    words = [f"dp={dp}", *replace(way, recompute="", co_shard=1).words, f"micro_batches={micro_batches}"]

    def script(p: Planner) -> None:
        options = parse_plan(",".join(words))
        (layers,) = p.split_layers(1)
        before, behind = vocabulary_stages(p, list(layers))
        everywhere = (tuple(range(rows)),)
        place_stages(p, [before, layers, behind], p.cluster.groups(rows), (everywhere,) * 3, **options.axes)
        cut_vocabulary(p, ROWS)
        p.order(gpipe(micro_batches))
        apply_recipes(p, options)

    _, materialized = place(short.graph, cluster, script, axes)
    placed = PricedPlacement(materialized, cluster)
    before, behind = placed.price(0, [0]), placed.price(0, [2])
    return replace(
        placed.price(0, [0, 2], is_theirs=lambda layout: any(ROWS in cut for cut in layout.cuts)),
        hand_on=0.0,
        activations=before.activations,
        # what the head keeps is there for one micro-batch at a time
        temporary=max(before.temporary, behind.activations + behind.temporary),
    )
