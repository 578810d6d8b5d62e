"""Fits find the device and the links that times were made up from."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superscaler.planner.cluster import Cluster, Link, Nodes
from superscaler.planner.cluster_presets import A100_80GB, V100_32GB, local
from superscaler.planner.collective_cost import collective_seconds
from superscaler.planner.device_group import device_group
from superscaler.planner.efficiency import OperatorClass
from superscaler.planner.operator_work import Work
from superscaler.planner.transport import IDEAL, Collective, Measured
from superscaler.profiling.collectives import CollectiveTime
from superscaler.profiling.fit import OperatorTime, fit_device, fit_links, fit_terms

WORK = [
    Work(
        one,
        flops if one.is_product else flops / 1e4,
        flops / 1e3 if one.is_product else flops / 10,
        "float32",
    )
    for one in OperatorClass
    for flops in (1e3, 1e7, 1e9, 1e10, 1e12)
]


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=2))
def test_terms_are_found_again(factors):
    rows = [(1.0, work) for work in (1.0, 3.0, 10.0)]
    seconds = [sum(map(float.__mul__, factors, row)) for row in rows]
    assert fit_terms(rows, seconds) == pytest.approx(factors)


def test_no_factor_is_negative():
    assert fit_terms([(1, 1), (1, 2), (1, 3)], [1, 3, 5])[0] == 0


@pytest.mark.parametrize(
    "device", [A100_80GB, V100_32GB, local(1).nodes[0].device], ids=lambda device: device.name
)
def test_a_device_is_found_again_from_the_times_of_its_operators(device):
    found = fit_device(
        "found",
        1,
        [OperatorTime(work, work.seconds(device)) for work in WORK],
        {"float64": 0.5, "float32": 1.0, "half": 2.0},
    )
    assert found.flops("float16") == 2 * found.flops("float32")
    for work in WORK:
        assert work.seconds(found) == pytest.approx(work.seconds(device), rel=0.1)


def test_links_are_found_again_from_the_times_of_their_collectives():
    transport = IDEAL.with_measured(Collective.ALL_TO_ALL, Measured(latency=3.0, bandwidth=0.25))
    nodes = Nodes(1, 8, A100_80GB, Link(5e9, 2e-5), Link(1.0, 1.0), 1)
    groups = {members: device_group(range(members), Cluster("", (nodes,))) for members in (2, 4, 8)}
    times = [
        CollectiveTime(
            one, num_bytes, members, collective_seconds(one, num_bytes, groups[members], transport)
        )
        for one in Collective
        for members in ((2,) if one is Collective.SEND else (2, 4, 8))
        for num_bytes in (1000, 10**6, 10**8)
    ]
    link, found = fit_links("found", times)
    assert (link.bandwidth, link.latency) == (pytest.approx(5e9), pytest.approx(2e-5))
    for one in Collective:
        correction = transport.correction(one)
        assert found.correction(one).latency == pytest.approx(correction.latency)
        assert found.correction(one).bandwidth == pytest.approx(correction.bandwidth)
