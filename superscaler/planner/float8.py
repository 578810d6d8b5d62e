"""Float8 in a plan: devices that have it, and what of a graph multiplies in it."""

from superscaler.errors import PlanError
from superscaler.ir.float8 import DTYPE, count_float8, wide_layers
from superscaler.ir.graph import Graph
from superscaler.planner.cluster import Cluster


def check_float8(graph: Graph, cluster: Cluster) -> None:
    """Make sure that all devices of a cluster multiply in float8, where a graph does.

    Raises:
        PlanError: One kind of device does not.
    """
    unable = [device.name for device in cluster.kinds() if not device.has_float8] if graph.float8 else []
    if unable:
        raise PlanError(
            f"{graph.name!r} multiplies in float8, and {', '.join(unable)} of {cluster.name} has no such arithmetic",
            remedy="leave out float8, or plan for devices that have it: from compute capability 8.9 (Ada) on; in a "
            "cluster file they have an entry float8 under flops_per_second",
        )


def describe_float8(graph: Graph) -> tuple[str, ...]:
    """How many linear layers multiply in float8, and per reason those that do not; a line each."""
    if not graph.float8:
        return ()
    reasons: dict[str, list[str]] = {}
    for layer, reason in wide_layers(graph):
        reasons.setdefault(reason, []).append(layer)
    count = count_float8(graph)
    return (
        f"float8: {count} linear layer{'s multiply' if count != 1 else ' multiplies'} in float8",
        *(f"  not {', '.join(layers)}: {reason}" for reason, layers in reasons.items()),
        f"  whatever is no linear layer, such as attention, is computed in {DTYPE} or wider",
    )
