"""Rewrite: the graph that a script's calls of `co_shard` and `recompute` lead to."""

from dataclasses import replace
from math import prod

from superscaler.errors import PlanError
from superscaler.ir.graph import Graph
from superscaler.planner.co_shard import CoShard, co_shard
from superscaler.planner.micro_batches import batch_axes
from superscaler.planner.planner import Planner
from superscaler.planner.recompute import recompute


def rewrite(planner: Planner, micro_batches: int) -> Graph:
    """What runs piece after piece in pieces, then what runs again of the rest.

    Raises:
        PlanError: Pieces cannot run one after another, or a cut over devices leaves none of equal size.
    """
    decisions = [
        replace(decision, parts=_parts(planner, decision, micro_batches)) for decision in planner.co_sharded
    ]
    graph = co_shard(planner.graph, planner.axes, decisions)
    blocks = [dict.fromkeys(name for name in block if name in graph.by_name) for block in planner.repeated]
    return recompute(graph, blocks, planner.stored_in_blocks)


def _parts(planner: Planner, decision: CoShard, micro_batches: int) -> int:
    """Into how many parts a script cuts the axis that runs piece after piece, over devices and in time.

    Raises:
        PlanError: The parts have no such pieces, or are uneven.
    """
    axis, block = decision.axis, set(decision.block)
    cuts = [
        cut for cut in planner.cuts if cut.axis == axis and (cut.operators is None or cut.operators & block)
    ]
    meshes = {planner.places[name] for name in block if name in planner.places} or {*planner.places.values()}
    sizes = {
        cut.over: max((m.size(cut.over) for m in meshes if cut.over in m.names), default=1) for cut in cuts
    }
    is_batch = axis in batch_axes(planner.graph, planner.axes)
    parts = prod(sizes.values()) * (micro_batches if is_batch else 1)
    if any(cut.pieces for cut in cuts) or axis.size % (parts * decision.pieces):
        raise PlanError(
            f"{axis} is cut into {parts} parts, and cannot run in {decision.pieces} equal pieces in each",
            where=decision.where,
            remedy=f"use parts and pieces whose product divides {axis.size}",
        )
    return parts
