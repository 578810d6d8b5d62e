"""Recomputation: which parts of the forward run again in the backward instead of being stored."""

from collections.abc import Sequence

from superscaler.errors import PlanError
from superscaler.ir.graph import Graph, Operator, Phase
from superscaler.ir.kinds import row_of
from superscaler.ir.mesh import Mesh
from superscaler.planner.planner import Planner
from superscaler.planner.recipes.blocks import forward_of_layers, selected
from superscaler.planner.recompute import operators_to_repeat
from superscaler.planner.selection import Selection


def recompute_attention(p: Planner) -> None:
    """Run the inside of each attention again in its backward, not its projections (selective, arXiv 2205.05198).

    That is an attention which is one operator, or all from the product of queries and keys to that with values. Its
    scores take most of the memory of a layer whose sequence is long, for little arithmetic.

    Raises:
        PlanError: The model has no attention that stores anything.
    """
    attentions = [
        selected(p, operators, f"attention in {layer.description}")
        for layer in forward_of_layers(p)
        for operators in attentions_in(p.graph, layer.operators)
    ]
    _recompute_blocks(p, attentions, "attention")


def recompute_layers(p: Planner) -> None:
    """Run each layer's forward again in its backward; of a layer its input is stored (Chen et al., arXiv 1604.06174).

    The layers are those stages are made of, as small as may be. The price is about a third more arithmetic.

    Raises:
        PlanError: The model has no layers that store anything.
    """
    _recompute_blocks(p, forward_of_layers(p), "layers")


def recompute_stages(p: Planner) -> None:
    """Run each stage's forward again in its backward; of a stage its input is stored (GPipe, arXiv 1811.06965).

    Little is stored while other micro-batches are computed; while a backward runs, all of the stage is there.

    Raises:
        PlanError: The model has no stages that store anything.
    """
    stages: dict[Mesh, list[Operator]] = {}
    for operator in p.graph.operators:
        if operator.phase is Phase.FORWARD and operator.name in p.places:
            stages.setdefault(p.places[operator.name], []).append(operator)
    _recompute_blocks(
        p, [selected(p, stage, f"the stage on {mesh}") for mesh, stage in stages.items()], "stages"
    )


def attentions_in(graph: Graph, layer: Sequence[Operator]) -> list[list[Operator]]:
    """The attentions among the forward operators of a layer: each from a product of activations to the next.

    No product with a weight lies between the two.
    """
    moving = _depending_on_inputs(graph)
    multiplying = {operator.name for operator in layer if row_of(operator).flops_per_point == 2}
    products = {o.name for o in layer if o.name in multiplying and len(moving.intersection(o.reads)) > 1}
    inner = [operator for operator in layer if operator.name not in multiplying - products]
    behind, ahead = set(products), set(products)
    for operator in inner:
        if any(writer.name in behind for writer in _writers(graph, operator)):
            behind.add(operator.name)
    for operator in reversed(inner):
        if any(reader.name in ahead for name in operator.writes for reader in graph.readers[name]):
            ahead.add(operator.name)
    found: list[list[Operator]] = []
    for operator in inner:
        if operator.name in behind & ahead:
            joined = [one for one in found if any(writer in one for writer in _writers(graph, operator))]
            found = [one for one in found if one not in joined]
            found.append([*(other for one in joined for other in one), operator])
    return [
        one
        for one in found
        if len(products.intersection(o.name for o in one)) > 1 or any(o.kind == "attention" for o in one)
    ]


def _writers(graph: Graph, operator: Operator) -> list[Operator]:
    return [graph.writer[name] for name in operator.reads if name in graph.writer]


def _depending_on_inputs(graph: Graph) -> set[str]:
    found = set(graph.inputs)
    for operator in graph.operators:
        if not found.isdisjoint(operator.reads):
            found.update(operator.writes)
    return found


def _recompute_blocks(p: Planner, blocks: Sequence[Selection], what: str) -> None:
    if p.is_rewritten:
        return
    storing = [
        block
        for block in blocks
        if operators_to_repeat(p.graph, dict.fromkeys(operator.name for operator in block))
    ]
    if not storing:
        raise PlanError(
            f"the model {p.graph.name!r} has no {what} that store anything for a backward",
            where=p.speaker,
            remedy="train it, or choose blocks in a plan script with p.recompute(selection)",
        )
    for block in storing:
        p.recompute(block)
