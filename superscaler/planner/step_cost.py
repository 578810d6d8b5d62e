"""Seconds that one communication step takes: a collective along a mesh axis, messages in pairs, or an exchange."""

from bisect import bisect_left, bisect_right
from functools import cache
from itertools import accumulate
from math import prod

from superscaler.ir.layout import Layout
from superscaler.ir.mesh import TIME, Mesh
from superscaler.planner.cluster import Cluster
from superscaler.planner.collective_cost import collective_seconds
from superscaler.planner.device_group import DeviceGroup, concurrent_groups
from superscaler.planner.steps import Step, StepKind, space_partial, uses_time
from superscaler.planner.transport import Collective

LOCAL_SECONDS = 1e-9
"""Charged for every step, so that of two equally fast chains the shorter wins."""
EXCHANGE_PENALTY = 4.0
"""Many small messages use a link worse than one collective does, and generated code is harder to read."""
SAMPLED_READERS = 16
"""Of how many receivers an exchange is priced; receivers of a regular layout differ little."""


def step_seconds(step: Step, bytes_per_element: int, cluster: Cluster) -> float:
    """How long all runs of `step` in one training step take, in seconds.

    A step on a value that differs per micro-batch runs once for each.
    """
    if step.is_local:
        return LOCAL_SECONDS
    runs = step.before.mesh.micro_batches if uses_time(step.before) else 1
    return LOCAL_SECONDS + runs * seconds_per_run(step, bytes_per_element, cluster)


def local_elements(layout: Layout) -> int:
    """Elements of the largest piece a device holds, of one micro-batch where time is cut; in the example."""
    return prod(largest_pieces(layout))


def largest_pieces(layout: Layout) -> list[int]:
    """Per fine dim the size of its largest piece; in the example."""
    return [
        max(layout.pieces[dim] or ())
        if layout.pieces and layout.pieces[dim]
        else -(-int(size) // layout.num_pieces(dim))
        for dim, size in enumerate(layout.sizes)
    ]


def seconds_per_run(step: Step, bytes_per_element: int, cluster: Cluster) -> float:
    """How long one run of a step that is not local takes, in seconds: that of the slowest of its groups."""
    if step.kind is StepKind.EXCHANGE:
        return _exchange_seconds(step.before, step.after, bytes_per_element, cluster)
    return seconds_of_bytes(step, bytes_per_element * elements_moved(step), cluster)


def elements_moved(step: Step) -> int:
    """Elements that a device has before a collective or after it, whichever are more; of a message, those sent."""
    return local_elements(step.after if step.kind is StepKind.ALL_GATHER else step.before)


def seconds_of_bytes(step: Step, num_bytes: float, cluster: Cluster) -> float:
    """How long a collective or a message takes for so many bytes: that of the slowest of its groups."""
    if step.kind is StepKind.SEND:
        groups = _pairs(step.before.mesh, step.after.mesh, cluster)
    else:
        groups = groups_along(step.before.mesh, step.axis, cluster)
    collective = Collective(step.kind.value)
    return max(
        (collective_seconds(collective, num_bytes, group, cluster.transport) for group in groups), default=0.0
    )


@cache
def groups_along(mesh: Mesh, axis: str, cluster: Cluster) -> tuple[DeviceGroup, ...]:
    """The kinds of groups along a mesh axis, all of which communicate at the same time."""
    size = mesh.size(axis)
    stride = prod(other for _, other in mesh.axes[mesh.names.index(axis) + 1 :])
    return concurrent_groups(
        (
            mesh.devices[first : first + stride * size : stride]
            for first in range(len(mesh.devices))
            if first // stride % size == 0
        ),
        cluster,
    )


@cache
def _pairs(source: Mesh, target: Mesh, cluster: Cluster) -> tuple[DeviceGroup, ...]:
    """The kinds of pairs of devices with equal places; a device hands to itself for free."""
    pairs = zip(source.devices, target.devices, strict=True)
    return concurrent_groups((pair for pair in pairs if pair[0] != pair[1]), cluster)


def _exchange_seconds(source: Layout, target: Layout, bytes_per_element: int, cluster: Cluster) -> float:
    """Receivers work at the same time; so do senders, among whom the whole is spread evenly."""
    devices = target.mesh.devices
    sampled = devices[:: -(-len(devices) // SAMPLED_READERS)]
    summands = 1 if space_partial(target) else prod(source.mesh.size(axis) for axis in space_partial(source))
    bounds = [[0, *accumulate(source.piece_sizes(dim))] for dim in range(len(source.sizes))]
    sources = set(source.mesh.devices)
    messages, received = [], []
    for device in sampled:
        wanted = _box(target, device)
        elements = summands * prod(stop - start for start, stop in wanted)
        count = summands * prod(
            bisect_left(bound, stop) - bisect_right(bound, start) + 1
            for bound, (start, stop) in zip(bounds, wanted, strict=True)
        )
        if device in sources and (not space_partial(target) or source.mesh == target.mesh):
            held = [
                max(0, min(b, d) - max(a, c))
                for (a, b), (c, d) in zip(wanted, _box(source, device), strict=True)
            ]
            elements -= prod(held)
            count -= all(held)
        messages.append(count)
        received.append(elements)
    slowest = max(max(received), sum(received) / len(sampled) * len(devices) / len(sources))
    group = _both(source.mesh, target.mesh, cluster)
    one = collective_seconds(Collective.SEND, 0, group, cluster.transport)
    whole = collective_seconds(Collective.SEND, slowest * bytes_per_element, group, cluster.transport)
    return EXCHANGE_PENALTY * (whole + one * max(messages))


@cache
def _both(source: Mesh, target: Mesh, cluster: Cluster) -> DeviceGroup:
    """All devices of two meshes."""
    return concurrent_groups([tuple(dict.fromkeys(source.devices + target.devices))], cluster)[0]


def _box(layout: Layout, device: int) -> list[tuple[int, int]]:
    coordinates = {**layout.mesh.coordinates(device), TIME: 0}
    return [layout.interval(dim, coordinates) for dim in range(len(layout.sizes))]
