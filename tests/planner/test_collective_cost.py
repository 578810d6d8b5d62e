"""Collectives: the textbook's formulas over ideal links, order by size and group, and what groups share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superscaler.planner.cluster import Cluster, Link, Nodes
from superscaler.planner.collective_cost import collective_seconds
from superscaler.planner.device import Device
from superscaler.planner.device_group import concurrent_groups, device_group
from superscaler.planner.transport import IDEAL, NCCL, Collective, Measured

LINK, NETWORK = Link(300e9, 3e-6), Link(25e9, 1e-5)
DEVICE = Device("", 2**30, (), 1.0)
POD = Cluster("", (Nodes(128, 8, DEVICE, LINK, NETWORK, 8),), NCCL)
MEGA = 1e6
collectives = st.sampled_from(list(Collective))
num_bytes = st.floats(0, 1e10)


def seconds(collective, size, group, transport=IDEAL):
    return collective_seconds(collective, size, group, transport)


def test_a_ring_moves_what_the_textbook_says():
    group = device_group(range(8), POD)
    moved, hop = 7 / 8 * MEGA / LINK.bandwidth, LINK.latency
    assert seconds(Collective.REDUCE_SCATTER, MEGA, group) == pytest.approx(7 * hop + moved)
    assert seconds(Collective.ALL_GATHER, MEGA, group) == pytest.approx(7 * hop + moved)
    assert seconds(Collective.ALL_REDUCE, MEGA, group) == pytest.approx(2 * (7 * hop + moved))
    assert seconds(Collective.ALL_TO_ALL, MEGA, group) == pytest.approx(7 * hop + moved)
    assert seconds(Collective.BROADCAST, MEGA, group) == pytest.approx(7 * hop + MEGA / LINK.bandwidth)


def test_a_message_takes_its_latency_and_its_bytes():
    near, far = device_group((0, 1), POD), device_group((0, 8), POD)
    assert seconds(Collective.SEND, MEGA, near) == pytest.approx(LINK.latency + MEGA / LINK.bandwidth)
    assert seconds(Collective.SEND, MEGA, far) == pytest.approx(NETWORK.latency + MEGA / NETWORK.bandwidth)


def test_a_ring_over_whole_nodes_leaves_each_through_all_its_cards():
    assert device_group(range(16), POD).ring_bandwidth == 8 * NETWORK.bandwidth
    assert device_group((0, 1, 8, 9), POD).ring_bandwidth == 2 * NETWORK.bandwidth
    assert device_group(range(8), POD).ring_bandwidth == LINK.bandwidth
    fast = Cluster("", (Nodes(2, 8, DEVICE, LINK, Link(100e9, 1e-5), 8),))
    assert device_group(range(16), fast).ring_bandwidth == LINK.bandwidth, (
        "the rest of the ring is in the nodes"
    )


def test_groups_of_one_axis_share_the_cards_of_a_node():
    scarce = Cluster("", (Nodes(4, 8, DEVICE, LINK, NETWORK, 4),))
    (alone,) = concurrent_groups([(0, 8)], scarce)
    (together,) = concurrent_groups([(i, i + 8) for i in range(8)], scarce)
    (few,) = concurrent_groups([(i, i + 8) for i in range(4)], scarce)
    assert alone.ring_bandwidth == few.ring_bandwidth == NETWORK.bandwidth
    assert together.ring_bandwidth == NETWORK.bandwidth / 2
    within = concurrent_groups([(0, 1, 2, 3), (4, 12)], scarce)
    assert [group.ring_bandwidth for group in within] == [LINK.bandwidth, NETWORK.bandwidth], "no sharing"


def test_small_all_reduces_over_many_nodes_run_along_trees():
    nodes = 128
    small, group = 1e3, device_group(range(0, 8 * nodes, 8), POD)
    depth = 7
    assert 2**depth == nodes
    least = NCCL.protocols[0].latency * NETWORK.latency
    tree = NCCL.launch_seconds + 2 * depth * least
    assert tree < seconds(Collective.ALL_REDUCE, small, group, NCCL) < tree * 1.05
    assert seconds(Collective.ALL_GATHER, small, group, NCCL) > (nodes - 1) * least


def test_large_messages_reach_the_bandwidth_and_small_ones_do_not():
    group = device_group(range(8), POD)
    ideal = [2 * 7 / 8 * size / LINK.bandwidth for size in (1e4, 1e10)]
    real = [seconds(Collective.ALL_REDUCE, size, group, NCCL) for size in (1e4, 1e10)]
    assert real[0] > 100 * ideal[0]
    assert real[1] < 1.01 * ideal[1]


@given(collectives, num_bytes, num_bytes, st.integers(2, 1024))
def test_more_bytes_are_never_faster(collective, one, other, size):
    group = device_group(range(size), POD)
    few, many = sorted((one, other))
    assert seconds(collective, few, group, NCCL) <= seconds(collective, many, group, NCCL)


@given(collectives, num_bytes, st.integers(1, 8), st.integers(1, 8))
def test_larger_groups_in_a_node_are_never_faster(collective, size, one, other):
    small, large = (device_group(range(count), POD) for count in sorted((one, other)))
    assert seconds(collective, size, small, NCCL) <= seconds(collective, size, large, NCCL)


@given(collectives, num_bytes, st.integers(1, 8), st.integers(2, 128), st.integers(2, 128))
def test_more_nodes_are_never_faster(collective, size, members, one, other):
    few, many = (
        device_group([8 * node + i for node in range(nodes) for i in range(members)], POD)
        for nodes in sorted((one, other))
    )
    assert seconds(collective, size, few, NCCL) <= seconds(collective, size, many, NCCL) * (1 + 1e-12)


@given(collectives, num_bytes, st.integers(2, 64))
def test_no_library_beats_its_own_links(collective, size, count):
    group = device_group(range(count), POD)
    bare = seconds(collective, size, group) - sum((LINK.latency, NETWORK.latency)) * 2 * count
    assert seconds(collective, size, group, NCCL) >= bare


def test_what_was_measured_of_one_collective_corrects_it_alone():
    measured = NCCL.with_measured(Collective.ALL_TO_ALL, Measured(bandwidth=0.5))
    group = device_group(range(8), POD)
    for collective, factor in ((Collective.ALL_TO_ALL, 2), (Collective.ALL_GATHER, 1)):
        before, after = (seconds(collective, 1e12, group, transport) for transport in (NCCL, measured))
        assert after == pytest.approx(factor * before, rel=1e-3)


def test_the_slowest_nodes_bind_a_group_of_several_kinds():
    slow = Nodes(1, 4, DEVICE, Link(100e9, 5e-6), Link(5e9, 3e-5), 1)
    mixed = Cluster("", (*POD.nodes, slow))
    group = device_group([*range(4), 1024, 1025, 1026, 1027], mixed)
    assert group.ring_bandwidth == slow.network.bandwidth, "four devices, one card"
    assert (group.link_latency, group.network_latency) == (5e-6, 3e-5)
