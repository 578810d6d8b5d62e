"""Fit: from measured times to the figures of a device and its links."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from superscaler.planner.cluster import Link
from superscaler.planner.collective_cost import collective_work
from superscaler.planner.device import FLOAT8, FLOPS_CLASSES, Device
from superscaler.planner.efficiency import Curve, Efficiency, OperatorClass
from superscaler.planner.operator_work import Work
from superscaler.planner.transport import Collective, Measured, Protocol, Transport
from superscaler.profiling.collectives import CollectiveTime


@dataclass(frozen=True, slots=True)
class OperatorTime:
    """What a call of an operator took."""

    work: Work
    seconds: float


def fit_terms(rows: Sequence[Sequence[float]], seconds: Sequence[float]) -> tuple[float, ...]:
    """Factors, none negative, with which each row's terms add up to its seconds; errors are relative.

    >>> [round(factor, 6) for factor in fit_terms([(1, 1), (1, 10), (1, 100)], [3, 12, 102])]
    [2.0, 1.0]
    """
    terms = np.asarray(rows, dtype=float) / np.asarray(seconds, dtype=float)[:, None]
    best, least = np.zeros(terms.shape[1]), np.inf
    # so few terms that every choice of those that are not zero can be tried
    for chosen in product((False, True), repeat=terms.shape[1]):
        if not any(chosen):
            continue
        found = np.zeros(terms.shape[1])
        found[list(chosen)] = np.linalg.lstsq(terms[:, chosen], np.ones(len(terms)), rcond=None)[0]
        error = float(np.square(terms @ found - 1).sum())
        if (found >= 0).all() and error < least:
            best, least = found, error
    return tuple(map(float, best))


def fit_device(
    name: str,
    memory_bytes: int,
    times: Iterable[OperatorTime],
    speeds: Mapping[str, float],
    host_bandwidth: float | None = None,
) -> Device:
    """A device whose peaks are the best that any class of operators reaches.

    Args:
        name: Of the kind of device.
        memory_bytes: Of its memory.
        times: Of operators of all classes, in float32.
        host_bandwidth: Of copies to host memory; None: it is the same memory, read and written.
        speeds: Class of dtypes -> how much faster its large products are than those in float32; without float8, the
            device has none.
    """
    times = list(times)
    lines: dict[OperatorClass, tuple[float, float]] = {}
    for one in OperatorClass:
        own = [time for time in times if time.work.operator_class is one]
        rows = [(1.0, time.work.flops if one.is_product else time.work.num_bytes) for time in own]
        start, per_unit = fit_terms(rows, [time.seconds for time in own])
        lines[one] = start, max(per_unit, 1e-18)
    launch = min(start for start, _ in lines.values())
    flops = max(1 / line[1] for one, line in lines.items() if one.is_product)
    bandwidth = max(1 / line[1] for one, line in lines.items() if not one.is_product)
    pointwise = 1 / lines[OperatorClass.POINTWISE][1] / bandwidth
    curves = tuple(
        (one, Curve(part := 1 / per_unit / flops, pointwise, (start - launch) * part))
        if one.is_product
        else (one, Curve(1.0, part := 1 / per_unit / bandwidth, (start - launch) * part))
        for one, (start, per_unit) in lines.items()
    )
    peaks = tuple((kind, flops * speeds[kind]) for kind in (*FLOPS_CLASSES, FLOAT8) if kind in speeds)
    return Device(
        name, memory_bytes, peaks, bandwidth, host_bandwidth or bandwidth / 2, Efficiency(launch, curves)
    )


def fit_links(name: str, times: Iterable[CollectiveTime]) -> tuple[Link, Transport]:
    """A link and a library by which every collective takes what was measured, of devices of one machine."""
    times = list(times)
    lines: dict[Collective, tuple[float, float]] = {}
    for one in Collective:
        own = [time for time in times if time.collective is one]
        rows = [collective_work(one, time.num_bytes, time.members) for time in own]
        hop, per_byte = fit_terms(rows, [time.seconds for time in own])
        lines[one] = max(hop, 1e-9), max(per_byte, 1e-15)
    hop, per_byte = lines[Collective.SEND]
    measured = tuple(
        (one, Measured(own_hop / hop, per_byte / own_per_byte))
        for one, (own_hop, own_per_byte) in lines.items()
    )
    transport = Transport(name, 0.0, (Protocol(1.0, 1.0),), False, tuple(sorted(measured)))
    return Link(1 / per_byte, hop), transport
