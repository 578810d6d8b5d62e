"""The pipeline on one page: trace, plan, verify, lower, emit."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from superscaler.ir.graph import Graph
from superscaler.planner.cluster import Cluster
from superscaler.planner.plan import Plan, make_plan
from superscaler.planner.planner import Planner
from superscaler.planner.recipes import recipe


def plan(graph: Graph, cluster: Cluster, how: str | Callable[[Planner], None] = "none") -> Plan:
    """Plan a graph by a plan string (``dp=2,tp=2``) or a plan script.

    Raises:
        PlanError: The plan does not fit the graph or the cluster.
    """
    if isinstance(how, str):
        return make_plan(graph, cluster, recipe(how), how)
    return make_plan(graph, cluster, how, how.__name__)
