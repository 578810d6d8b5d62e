"""A plain numpy model of steps: what every device holds of a value, in every micro-batch."""

from itertools import product
from math import prod

import numpy as np

from superscaler.ir.layout import Layout
from superscaler.ir.mesh import TIME
from superscaler.planner.exchange import exchange_moves, verify_exchange
from superscaler.planner.steps import Step, StepKind, uses_time

Held = dict[tuple[int, int], np.ndarray]
"""Per device and micro-batch, the elements it holds."""


def places(layout):
    """Every (device, micro-batch) with its coordinates; without use of time all micro-batches are equal."""
    for device, t in product(layout.mesh.devices, range(layout.mesh.micro_batches)):
        yield (device, t), {**layout.mesh.coordinates(device), TIME: t}


def distribute(whole: np.ndarray, layout: Layout, rng: np.random.Generator) -> Held:
    """Cut `whole` by the regions of `layout`; summands are random and combine to it."""
    count = prod(layout.mesh.size(axis) for axis in layout.partial)
    shares = rng.integers(-9, 9, size=(count, *whole.shape)).astype(float)
    if layout.reducer == "sum":
        shares[0] = whole - shares[1:].sum(axis=0)
    else:
        shares = np.minimum(shares, whole)
        shares[rng.integers(count)] = whole
    held = {}
    for place, coordinates in places(layout):
        region = layout.region(coordinates)
        held[place] = shares[region.share[0]][tuple(slice(*interval) for interval in region.intervals)]
    return held


def collect(held: Held, layout: Layout) -> np.ndarray:
    """The whole value; replicas must agree, and every element be there."""
    shares: dict[int, np.ndarray] = {}
    for place, coordinates in places(layout):
        region = layout.region(coordinates)
        share = shares.setdefault(region.share[0], np.full(layout.sizes, np.nan))
        part = share[tuple(slice(*interval) for interval in region.intervals)]
        assert part.shape == held[place].shape
        assert (np.isnan(part) | (part == held[place])).all(), "replicas differ"
        part[...] = held[place]
    stacked = np.stack(list(shares.values()))
    return stacked.sum(axis=0) if layout.reducer == "sum" else stacked.max(axis=0)


def run(step: Step, held: Held) -> Held:
    """What `step` leaves on every device, done as its name says."""
    mesh, axis, dim = step.before.mesh, step.axis, step.dim
    if step.kind is StepKind.SEND:
        names = dict(zip(mesh.devices, step.after.mesh.devices, strict=True))
        return {(names[device], t): value for (device, t), value in held.items()}
    if step.kind is StepKind.EXCHANGE:
        return _exchange(step, held)
    result = {}
    for (device, t), coordinates in places(step.before):
        if axis == TIME:
            number = t
            group = [held[device, other] for other in range(mesh.micro_batches)]
        else:
            number = coordinates[axis]
            group = [held[other, t] for other in mesh.group(axis, device)]
        size, own = len(group), held[device, t]
        if step.kind in (StepKind.ALL_REDUCE, StepKind.ACCUMULATE):
            value = sum(group) if step.before.reducer == "sum" else np.maximum.reduce(group)
        elif step.kind is StepKind.REDUCE_SCATTER:
            value = np.split(sum(group), size, dim)[number]
        elif step.kind is StepKind.ALL_GATHER:
            value = np.concatenate(group, dim)
        elif step.kind is StepKind.ALL_TO_ALL:
            value = np.concatenate([np.split(other, size, dim)[number] for other in group], step.from_dim)
        elif step.kind is StepKind.MASK:
            value = own if number == 0 else np.zeros_like(own)
        else:
            assert step.kind is StepKind.SLICE
            sizes = (
                step.after.piece_sizes(dim) if not step.before.cuts[dim] else [own.shape[dim] // size] * size
            )
            value = np.split(own, np.cumsum(sizes)[:-1], dim)[number]
        result[device, t] = value
    return result


def _exchange(step: Step, held: Held) -> Held:
    result = {}
    for place, coordinates in places(step.after):
        result[place] = np.zeros(step.after.region(coordinates).shape)
    for t in range(step.after.mesh.micro_batches):
        moves = exchange_moves(step, t)
        verify_exchange(step, moves, t)
        for move in moves:
            into = tuple(slice(*interval) for interval in move.target_box)
            result[move.target, t][into] += held[move.source, t][tuple(slice(*i) for i in move.source_box)]
    assert uses_time(step.before) == uses_time(step.after)
    return result
