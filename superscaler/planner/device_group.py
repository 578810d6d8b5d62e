"""DeviceGroup: what the price of a collective depends on: how many devices, in how many nodes, over which links."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from superscaler.planner.cluster import Cluster


@dataclass(frozen=True, slots=True)
class DeviceGroup:
    """Devices that communicate, while other groups like it use the same nodes."""

    size: int
    num_nodes: int
    """How many nodes its members are in."""
    members: int
    """How many of them are in the node with fewest."""
    link_bandwidth: float
    """Bytes per second from one member to others of its node."""
    link_latency: float
    network_bandwidth: float
    """Bytes per second from one member to other nodes, while all groups do so; infinite within one node."""
    network_latency: float

    @property
    def ring_bandwidth(self) -> float:
        """Bytes per second around a ring, which leaves each node through the cards of all members there."""
        across = self.members * self.network_bandwidth
        return across if self.members == 1 and self.num_nodes > 1 else min(self.link_bandwidth, across)


def device_group(devices: Iterable[int], cluster: Cluster, active: Counter[int] | None = None) -> DeviceGroup:
    """The group of these devices; `active`: per node, how many send to others at the same time, if not they alone."""
    devices = tuple(devices)
    members = cluster.members(devices)
    nodes = {cluster.node(device): cluster.nodes_of(device) for device in devices}
    crosses = len(nodes) > 1
    sending = active or members
    return DeviceGroup(
        len(devices),
        len(nodes),
        min(members.values()),
        min(one.link.bandwidth * one.link.efficiency for one in nodes.values()),
        max(one.link.latency for one in nodes.values()),
        min(one.network_bandwidth(sending[node]) for node, one in nodes.items()) if crosses else float("inf"),
        max(one.network.latency for one in nodes.values()) if crosses else 0.0,
    )


def concurrent_groups(groups: Iterable[tuple[int, ...]], cluster: Cluster) -> tuple[DeviceGroup, ...]:
    """The kinds of groups among disjoint ones that communicate at the same time, each once.

    Those that cross nodes share the network cards of the nodes they meet in.
    """
    groups = tuple(groups)
    active: Counter[int] = Counter()
    for group in groups:
        if not cluster.same_node(group):
            active += cluster.members(group)
    return tuple(dict.fromkeys(device_group(group, cluster, active) for group in groups))
