"""Seconds that a collective takes, by the alpha-beta model: hops times latency, and bytes over bandwidth.

Hops and bytes are those of the algorithm: a ring through all members, a tree over nodes, or a message to each member.
Of the transport's protocols, and of ring and tree, the fastest counts.
"""

from dataclasses import dataclass

from superscaler.planner.device_group import DeviceGroup
from superscaler.planner.transport import IDEAL, Collective, Transport

TREE_BANDWIDTH = 0.9
"""Fraction of a ring's bandwidth that a double binary tree reaches (NCCL's src/graph/tuning.cc)."""


@dataclass(frozen=True, slots=True)
class _Algorithm:
    """What one way to do a collective asks of the links."""

    hops: float
    """In a node, one after another."""
    network_hops: float
    seconds: float
    """The bytes over the bandwidth, of a protocol that reaches all of it."""


def collective_seconds(
    collective: Collective, num_bytes: float, group: DeviceGroup, transport: Transport
) -> float:
    """How long a collective takes.

    Args:
        collective: What is done.
        num_bytes: Of the larger of what a member has before and after; of a send, of the message.
        group: The members; of a send, both.
        transport: The library that does it.
    """
    if group.size == 1:
        return 0.0
    correction = transport.correction(collective)
    return transport.launch_seconds + min(
        protocol.latency
        * correction.latency
        * (way.hops * group.link_latency + way.network_hops * group.network_latency)
        + way.seconds / (protocol.bandwidth * correction.bandwidth)
        for way in _ways(collective, num_bytes, group, transport)
        for protocol in transport.protocols
    )


def _ways(
    collective: Collective, num_bytes: float, group: DeviceGroup, transport: Transport
) -> list[_Algorithm]:
    if collective is Collective.SEND:
        return [_send(num_bytes, group)]
    if collective is Collective.ALL_TO_ALL:
        return [_all_to_all(num_bytes, group)]
    ways = [_ring(collective, num_bytes, group)]
    if transport.has_trees and group.num_nodes > 1:
        ways += _tree(collective, num_bytes, group)
    return ways


def _ring(collective: Collective, num_bytes: float, group: DeviceGroup) -> _Algorithm:
    """Every member passes on (n - 1) / n of the bytes; an all-reduce does so twice, a broadcast passes on all."""
    rounds = 2 if collective is Collective.ALL_REDUCE else 1
    share = 1.0 if collective is Collective.BROADCAST else (group.size - 1) / group.size
    return _Algorithm(
        rounds * (group.size - group.num_nodes),
        rounds * (group.num_nodes - 1),
        rounds * share * num_bytes / group.ring_bandwidth,
    )


def _tree(collective: Collective, num_bytes: float, group: DeviceGroup) -> list[_Algorithm]:
    """A chain in each node, and two binary trees over nodes that each carry half."""
    if collective not in (Collective.ALL_REDUCE, Collective.BROADCAST):
        return []
    rounds = 2 if collective is Collective.ALL_REDUCE else 1
    depth = (group.num_nodes - 1).bit_length()
    chain = -(-group.size // group.num_nodes) - 1
    seconds = rounds * num_bytes / (TREE_BANDWIDTH * group.ring_bandwidth)
    return [_Algorithm(rounds * chain, rounds * depth, seconds)]


def _all_to_all(num_bytes: float, group: DeviceGroup) -> _Algorithm:
    """Every member sends 1 / n of its bytes to each: within the node over its link, to others over the network."""
    within = (group.members - 1) / group.size * num_bytes / group.link_bandwidth
    across = (group.size - group.members) / group.size * num_bytes / group.network_bandwidth
    return _Algorithm(group.members - 1, group.size - group.members, max(within, across))


def _send(num_bytes: float, group: DeviceGroup) -> _Algorithm:
    if group.num_nodes == 1:
        return _Algorithm(1, 0, num_bytes / group.link_bandwidth)
    return _Algorithm(0, 1, num_bytes / group.network_bandwidth)


def collective_work(collective: Collective, num_bytes: float, members: int) -> tuple[float, float]:
    """Hops, and bytes through each link, of the algorithm by which a collective in one node is priced."""
    unit = DeviceGroup(members, 1, members, 1.0, 1.0, float("inf"), 0.0)
    (way,) = _ways(collective, num_bytes, unit, IDEAL)
    return way.hops, way.seconds
