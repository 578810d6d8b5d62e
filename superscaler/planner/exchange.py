"""The messages of an exchange: exact intersections of what is held and what is wanted, point-to-point."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod

from superscaler.errors import VerificationError
from superscaler.ir.layout import Layout, piece_index
from superscaler.ir.mesh import TIME
from superscaler.ir.tensor import Region
from superscaler.planner.steps import Step, StepKind, space_partial

Box = tuple[tuple[int, int], ...]
"""Half-open ``[start, stop)`` per fine dim."""


@dataclass(frozen=True, slots=True)
class Move:
    """One box of elements that one device hands to another, or copies for itself."""

    source: int
    """The device that sends."""
    target: int
    """The device that receives; the same as `source` for a local copy."""
    source_box: Box
    """Where the elements lie in the sender's piece, counted from that piece's first element."""
    target_box: Box
    """Where they go in the receiver's piece. Summands for one box are added there."""

    @property
    def num_elements(self) -> int:
        """Elements moved."""
        return prod(stop - start for start, stop in self.source_box)


def exchange_moves(step: Step, micro_batch: int = 0) -> tuple[Move, ...]:
    """The moves of an exchange, by receiver.

    A receiver copies from itself what it holds already; other boxes come from the holder that has sent
    the least so far. Where the source holds summands that the target wants whole, every summand is sent.

    Args:
        step: A step of kind exchange.
        micro_batch: Where time is cut into unequal micro-batches, the boxes differ between them.
    """
    assert step.kind is StepKind.EXCHANGE, step
    source, target = step.before, step.after
    held = _pieces_held(source, micro_batch)
    holders: dict[tuple[Region, int], list[int]] = {}
    for device, (region, share) in held.items():
        holders.setdefault((region, share), []).append(device)
    grid = _Grid(source)
    sent = dict.fromkeys(source.mesh.devices, 0)
    moves = []
    for receiver, (wanted, share) in _pieces_held(target, micro_batch).items():
        shares = (share,) if space_partial(target) else range(_num_shares(source))
        for cell in grid.cells(wanted):
            common = cell.intersect(wanted)
            assert common is not None, (cell, wanted)
            for index in shares:
                candidates = holders[cell, index]
                sender = receiver if receiver in candidates else min(candidates, key=sent.__getitem__)
                if sender != receiver:
                    sent[sender] += common.num_elements
                moves.append(Move(sender, receiver, _box_within(common, cell), _box_within(common, wanted)))
    return tuple(moves)


def verify_exchange(step: Step, moves: tuple[Move, ...], micro_batch: int = 0) -> None:
    """Prove that every element of every receiver's piece arrives exactly once per summand.

    Raises:
        VerificationError: naming the device and what it would miss, get twice, or get wrongly.
    """
    held = _pieces_held(step.before, micro_batch)
    wanted = _pieces_held(step.after, micro_batch)
    arrived: dict[tuple[int, int], list[Box]] = {}
    for move in moves:
        (source, share), (target, _) = held[move.source], wanted[move.target]
        if _shift(move.source_box, source) != _shift(move.target_box, target):
            raise VerificationError(f"{step}: {move} puts elements where others belong")
        inside = _contains(source, move.source_box) and _contains(target, move.target_box)
        if not inside:
            raise VerificationError(f"{step}: {move} leaves the pieces of its devices")
        arrived.setdefault((move.target, share), []).append(move.target_box)
    for device, (region, own_share) in wanted.items():
        shares = (own_share,) if space_partial(step.after) else range(_num_shares(step.before))
        for share in shares:
            boxes = arrived.pop((device, share), [])
            if any(_overlap(a, b) for i, a in enumerate(boxes) for b in boxes[:i]):
                raise VerificationError(f"{step}: device {device} gets elements of {region} twice")
            count = sum(prod(stop - start for start, stop in box) for box in boxes)
            if count != region.num_elements:
                raise VerificationError(f"{step}: device {device} gets {count} elements of {region}")
    if arrived:
        raise VerificationError(f"{step}: summands nobody asked for arrive at {sorted(arrived)}")


def _pieces_held(layout: Layout, micro_batch: int) -> dict[int, tuple[Region, int]]:
    """What each device holds: the box, and the number of the summand among those over devices."""
    pieces = {}
    for device in layout.mesh.devices:
        coordinates = {**layout.mesh.coordinates(device), TIME: micro_batch}
        intervals = tuple(layout.interval(dim, coordinates) for dim in range(len(layout.sizes)))
        pieces[device] = Region(intervals), piece_index(layout.mesh, space_partial(layout), coordinates)
    return pieces


def _num_shares(layout: Layout) -> int:
    return prod(layout.mesh.size(axis) for axis in space_partial(layout))


class _Grid:
    """The boxes into which a layout cuts a tensor, found by where they lie."""

    def __init__(self, layout: Layout) -> None:
        """List the intervals of every fine dim once."""
        self.intervals: list[list[tuple[int, int]]] = []
        for dim in range(len(layout.sizes)):
            start, found = 0, []
            for size in layout.piece_sizes(dim):
                found.append((start, start + size))
                start += size
            self.intervals.append(found)

    def cells(self, wanted: Region) -> Iterator[Region]:
        """The boxes that share elements with `wanted`."""
        overlapping = [
            [(a, b) for a, b in found if max(a, start) < min(b, stop)]
            for found, (start, stop) in zip(self.intervals, wanted.intervals, strict=True)
        ]
        return (Region(box) for box in product(*overlapping))


def _box_within(box: Region, outer: Region) -> Box:
    return tuple((part.start, part.stop) for part in box.within(outer))


def _shift(box: Box, region: Region) -> Box:
    return tuple((a + start, b + start) for (a, b), (start, _) in zip(box, region.intervals, strict=True))


def _contains(region: Region, box: Box) -> bool:
    return all(0 <= a < b <= size for (a, b), size in zip(box, region.shape, strict=True))


def _overlap(one: Box, other: Box) -> bool:
    return all(max(a, c) < min(b, d) for (a, b), (c, d) in zip(one, other, strict=True))
