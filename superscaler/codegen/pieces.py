"""Pieces: what one device holds of a whole tensor, and the whole tensor made of what all devices hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from superscaler.errors import VerificationError
from superscaler.ir.layout import Layout
from superscaler.ir.mesh import TIME
from superscaler.ir.tensor import Region
from superscaler.planner.steps import uses_time

Place = tuple[int, int]
"""(device, micro-batch)."""


@dataclass(frozen=True, slots=True)
class Assembled:
    """A whole tensor, and how far devices disagree that should hold the same of it."""

    whole: Tensor
    difference: float
    """Largest difference between replicas, relative to the largest element."""


def piece(whole: Tensor, layout: Layout, coordinates: Mapping[str, int], shape: Sequence[int]) -> Tensor:
    """Cut one device's piece of `whole`.

    Args:
        whole: The tensor.
        layout: How it lies; it must not hold summands.
        coordinates: The device's, with ``mb`` where time is cut.
        shape: The piece's local shape.
    """
    assert not layout.partial, layout
    box = layout.region({TIME: 0, **coordinates}).intervals
    return whole.reshape(layout.sizes)[tuple(slice(*interval) for interval in box)].reshape(tuple(shape))


def assemble(pieces: Mapping[Place, Tensor], layout: Layout, shape: Sequence[int]) -> Assembled:
    """Make the whole tensor of the pieces that devices hold; summands are combined by the layout's reducer.

    Args:
        pieces: What each device of the layout's mesh holds in each micro-batch; one micro-batch is enough
            where time is not cut.
        layout: How the tensor lies.
        shape: Shape of the whole tensor.

    Raises:
        VerificationError: A piece has another size than its region, or a part of the tensor is held nowhere.
    """
    shares: dict[int, Tensor] = {}
    held: dict[Region, Tensor] = {}
    difference = 0.0
    for (device, micro_batch), value in pieces.items():
        region = layout.region({**layout.mesh.coordinates(device), TIME: micro_batch})
        if value.numel() != region.num_elements:
            raise VerificationError(f"device {device} holds {list(value.shape)} where its region is {region}")
        if region in held:
            difference = max(difference, relative_difference(value.reshape(region.shape), held[region]))
            continue
        held[region] = value.reshape(region.shape)
        share = shares.get(region.share[0])
        if share is None:
            share = shares[region.share[0]] = torch.zeros(layout.sizes, dtype=value.dtype)
        share[tuple(slice(*interval) for interval in region.intervals)] = held[region]
    covered = sum(region.num_elements for region in held)
    wanted = prod(layout.sizes) * prod(layout.mesh.size(axis) for axis in layout.partial)
    if covered != wanted:
        raise VerificationError(
            f"the pieces hold {covered} of {wanted} elements of a tensor of shape {list(shape)}"
        )
    return Assembled(combine(list(shares.values()), layout.reducer).reshape(tuple(shape)), difference)


def combine(summands: Sequence[Tensor], reducer: str) -> Tensor:
    """Combine summands as ``sum``, ``max`` or ``logsumexp``."""
    if len(summands) == 1:
        return summands[0]
    if reducer == "sum":
        total = summands[0].clone()
        for summand in summands[1:]:
            total += summand
        return total
    stacked = torch.stack(list(summands))
    return stacked.logsumexp(0) if reducer == "logsumexp" else stacked.amax(0)


def relative_difference(value: Tensor, truth: Tensor, floor: float = 0.0) -> float:
    """Largest difference of two tensors of one shape, relative to the largest element of `truth`, at least `floor`."""
    if value.shape != truth.shape:
        return float("inf")
    if value.numel() == 0 or torch.equal(value, truth):
        return 0.0
    a, b = value.double(), truth.double()
    same = (a == b) | (a.isnan() & b.isnan())
    gap = (a - b).abs().masked_fill(same, 0.0)
    scale = max(b.abs().max().item(), floor)
    largest = gap.max().item()
    if largest != largest:  # one is NaN where the other is not
        return float("inf")
    return largest / scale if scale > 0 else largest


def micro_batches_of(layout: Layout) -> range:
    """The micro-batches in which a value differs: all, or only the first."""
    return range(layout.mesh.micro_batches if uses_time(layout) else 1)
