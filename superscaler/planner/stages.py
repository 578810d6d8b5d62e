"""Stages: the arrays of devices operators are placed on, in an order in which the forward pass can run them."""

import networkx as nx

from superscaler.ir.graph import Operator, Phase
from superscaler.ir.mesh import Mesh
from superscaler.planner.placement import PlacedGraph


def stages_in_order(placed: PlacedGraph) -> tuple[Mesh, ...]:
    """Every stage behind those that feed it in the forward pass; of equals the one whose first operator comes first.

    Stages that feed each other stand together. Those with no forward come last.
    """
    operators = placed.graph.operators
    forward = [operator for operator in operators if operator.phase is Phase.FORWARD] or list(operators)

    def place(operator: Operator) -> Mesh:
        return placed.placements[operator.name].mesh

    found = {mesh: number for number, mesh in enumerate(dict.fromkeys(map(place, forward)))}
    feeds = nx.DiGraph()
    feeds.add_nodes_from(found)
    for operator in forward:
        for name in operator.reads:
            writer = placed.graph.writer.get(name)
            if writer is not None and place(writer) in found:
                feeds.add_edge(place(writer), place(operator))
    circles = nx.condensation(feeds)
    members = {group: sorted(circles.nodes[group]["members"], key=found.__getitem__) for group in circles}
    order = nx.lexicographical_topological_sort(circles, key=lambda group: found[members[group][0]])
    ordered = [mesh for group in order for mesh in members[group]]
    return tuple(dict.fromkeys([*ordered, *map(place, operators)]))
