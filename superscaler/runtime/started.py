"""Started: reductions and gathers that go on while the program computes.

Tensors below a limit travel with others of their kind, the rest alone and uncopied. Programs start them in one order on
all ranks of a group, and wait for them in that order, so that all launch the same messages alike.

What is summed whole is copied into a bucket as soon as it is made, and stays there. So its own memory is free again at
once, and serves for the next gradient. Gradients that stayed where they were made, between activations that come and
go, would leave holes behind which are too small for the gradients of the next step.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from superscaler.ir.bucket import BUCKET_BYTES, JOINED_BYTES, has_room, travels_alone
from superscaler.runtime.flat_messages import (
    buckets,
    join_columns,
    join_pieces,
    lead_with_pieces,
    split_columns,
)
from superscaler.runtime.groups import Axis

Kind = tuple[str, tuple[int, ...], bool, torch.dtype]
"""What reductions that travel together have in common: axis, its ranks, whether all is kept, dtype.

Stages on the same ranks may differ in what lies along an axis of one name, or only in its order, which matters where
each rank keeps its piece.
"""


@dataclass
class Message:
    """One collective under way, for one tensor or several."""

    work: Any
    unpack: Callable[[], list[Tensor]]
    _results: list[Tensor] | None = None

    def results(self) -> list[Tensor]:
        """Wait for it; a result per tensor."""
        if self._results is None:
            self.work.wait()
            self._results = self.unpack()
        return self._results


def start_all_reduce(flat: Tensor, parts: Sequence[Tensor], axis: Axis) -> Message:
    """Sum a contiguous tensor over an axis, in place; its parts are the results."""
    work = dist.all_reduce(flat, group=axis.group, async_op=True)
    return Message(work, lambda: list(parts))


def start_reduce_scatter(xs: Sequence[Tensor], axis: Axis, dims: Sequence[int]) -> Message:
    """Sum tensors of one dtype over an axis, of each this rank's piece of a dim, as a new tensor."""
    pieces = [lead_with_pieces(x, dim, axis.size) for x, dim in zip(xs, dims, strict=True)]
    flat = axis.to_group(join_columns(pieces)).contiguous()
    shapes = [piece.shape[1:] for piece in pieces]
    if flat.is_cuda:
        received = flat.new_empty(1, flat.shape[1])
        work = dist.reduce_scatter_tensor(received.view(-1), flat.view(-1), group=axis.group, async_op=True)
    else:  # gloo would all-reduce the whole and keep a piece: twice the bytes
        received = torch.empty_like(flat)
        work = dist.all_to_all_single(received.view(-1), flat.view(-1), group=axis.group, async_op=True)

    def unpack() -> list[Tensor]:
        mine = received if received.shape[0] == 1 else received.sum(0, keepdim=True)
        return [part[0] for part in split_columns(mine, shapes)]

    return Message(work, unpack)


def start_all_gather(xs: Sequence[Tensor], axis: Axis, dims: Sequence[int]) -> Message:
    """Join the pieces of tensors of one dtype along an axis, each along its own dim, into new tensors."""
    flat = join_columns([x.unsqueeze(0) for x in xs])
    shapes = [x.shape for x in xs]
    gathered = flat.new_empty(axis.size, flat.shape[1])
    work = dist.all_gather_into_tensor(gathered.view(-1), flat.view(-1), group=axis.group, async_op=True)

    def unpack() -> list[Tensor]:
        parts = split_columns(axis.from_group(gathered), shapes)
        return [join_pieces(part, dim) for part, dim in zip(parts, dims, strict=True)]

    return Message(work, unpack)


@dataclass
class Reduction:
    """A sum over an axis, and where its result goes."""

    x: Tensor
    axis: Axis
    dim: int | None
    """The dim of which this rank keeps its piece; None: it keeps all."""
    into: MutableMapping[str, Tensor]
    name: str
    message: Message | None = None
    place: int = 0
    """Which of the message's results is its own."""

    @property
    def kind(self) -> Kind:
        """What reductions that travel together have in common."""
        keeps_all = self.dim is None
        ranks = tuple(sorted(self.axis.ranks)) if keeps_all else self.axis.ranks
        return self.axis.name, ranks, keeps_all, self.x.dtype

    def finish(self) -> None:
        """Wait, and put the result where it goes, added to what is there."""
        assert self.message is not None
        value = self.message.results()[self.place]
        self.into[self.name] = self.into[self.name].add_(value) if self.name in self.into else value


@dataclass
class Bucket:
    """Memory in which sums travel together."""

    flat: Tensor
    first: str
    """Name of what was put in first."""
    filled: int = 0
    """Elements."""
    parts: int = 0
    """How many were put in."""
    is_closed: bool = False
    """Whether nothing more is put in."""
    complete: list[Reduction] = field(default_factory=list)
    """Those that may set out."""

    def has_room(self, x: Tensor) -> bool:
        """Whether `x` fits in, too."""
        is_within = self.filled + x.numel() <= self.flat.numel()
        return is_within and has_room(self.filled * x.itemsize, x.nbytes)

    def put(self, x: Tensor) -> Tensor:
        """Copy a tensor to the end; the copy."""
        part = self.flat[self.filled : self.filled + x.numel()].view(x.shape)
        self.filled += x.numel()
        self.parts += 1
        return part.copy_(x)

    def launch_if_complete(self) -> None:
        """Set all of it on its way once nothing is missing."""
        if self.is_closed and len(self.complete) == self.parts:
            sums = [reduction.x for reduction in self.complete]
            message = start_all_reduce(self.flat[: self.filled], sums, self.complete[0].axis)
            _carry(message, self.complete)


@dataclass
class Reductions:
    """Reductions under way, oldest first."""

    order: deque[Reduction] = field(default_factory=deque)
    small: dict[Kind, list[Reduction]] = field(default_factory=dict)
    """Those that scatter and wait for others to travel with, by kind."""
    open: dict[Kind, Bucket] = field(default_factory=dict)
    """The bucket that is being filled, by kind."""
    accumulating: dict[tuple[str, str], Bucket] = field(default_factory=dict)
    """The bucket in which micro-batches add up this tensor, which is summed over this axis."""
    sizes: dict[tuple[str, str], int] = field(default_factory=dict)
    """Elements that came together last time in the bucket that begins with this tensor over this axis."""

    def start(self, reduction: Reduction) -> None:
        """Launch it, alone or with those that wait, or let it wait for others."""
        self.order.append(reduction)
        if reduction.dim is not None:
            self._start_reduce_scatter(reduction)
        elif travels_alone(reduction.x.nbytes):
            flat = reduction.x.contiguous()
            _carry(start_all_reduce(flat, [flat], reduction.axis), [reduction])
        else:
            bucket = self._bucket(reduction)
            reduction.x = bucket.put(reduction.x)
            bucket.complete.append(reduction)
            self._close_if_full(reduction.kind)

    def accumulate(self, reduction: Reduction, *, is_last: bool) -> None:
        """Add it to what its name holds; the `is_last` is started with all that has been added."""
        x, into, name = reduction.x, reduction.into, reduction.name
        key = reduction.axis.name, name
        if name in into:
            into[name].add_(x)
        elif reduction.dim is not None or travels_alone(x.nbytes):
            into[name] = x
        else:
            self.accumulating[key] = self._bucket(reduction)
            into[name] = self.accumulating[key].put(x)
            self._close_if_full(reduction.kind)
        if not is_last:
            return
        reduction.x = into.pop(name)
        if key not in self.accumulating:
            self.start(reduction)
            return
        self.order.append(reduction)
        bucket = self.accumulating.pop(key)
        bucket.complete.append(reduction)
        if bucket is self.open.get(reduction.kind):
            self._close(reduction.kind)
        else:
            bucket.launch_if_complete()

    def wait(self, leaving: int = 0) -> None:
        """Finish all but the last `leaving` that were started."""
        while len(self.order) > leaving:
            reduction = self.order.popleft()
            if reduction.message is None and reduction.dim is None:
                self._close(reduction.kind)
            elif reduction.message is None:
                _launch_scattering(self.small.pop(reduction.kind))
            reduction.finish()

    def _bucket(self, reduction: Reduction) -> Bucket:
        """The bucket that has room for it."""
        x, kind = reduction.x, reduction.kind
        if kind in self.open and not self.open[kind].has_room(x):
            self._close(kind)
        if kind not in self.open:
            known = self.sizes.get((kind[0], reduction.name), BUCKET_BYTES // x.itemsize)
            self.open[kind] = Bucket(x.new_empty(max(known, x.numel())), reduction.name)
        return self.open[kind]

    def _close_if_full(self, kind: Kind) -> None:
        if self.open[kind].filled == self.open[kind].flat.numel():
            self._close(kind)

    def _close(self, kind: Kind) -> None:
        bucket = self.open.pop(kind)
        self.sizes[kind[0], bucket.first] = bucket.filled
        bucket.is_closed = True
        bucket.launch_if_complete()

    def _start_reduce_scatter(self, reduction: Reduction) -> None:
        limit = JOINED_BYTES[reduction.x.device.type]
        if reduction.x.nbytes >= limit:
            _launch_scattering([reduction])
            return
        together = self.small.setdefault(reduction.kind, [])
        together.append(reduction)
        if sum(one.x.nbytes for one in together) >= limit:
            _launch_scattering(self.small.pop(reduction.kind))


def _launch_scattering(reductions: Sequence[Reduction]) -> None:
    dims = [reduction.dim for reduction in reductions if reduction.dim is not None]
    _carry(
        start_reduce_scatter([reduction.x for reduction in reductions], reductions[0].axis, dims), reductions
    )


def _carry(message: Message, reductions: Sequence[Reduction]) -> None:
    for place, reduction in enumerate(reductions):
        reduction.message, reduction.place = message, place


class GatheredAhead(Iterator[list[Tensor]]):
    """Groups of tensors, each joined over an axis: the next group travels while one is used.

    Args:
        source: Holds this rank's pieces.
        groups: Per group the names, each with the dim along which its pieces are joined.
        axis: The ranks that hold the pieces.
        naming: A context in which failures are told apart.
    """

    def __init__(
        self,
        source: Mapping[str, Tensor],
        groups: Sequence[Mapping[str, int]],
        axis: Axis,
        naming: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._source, self._axis, self._groups, self._naming = source, axis, iter(groups), naming
        self._coming = self._start()

    def __next__(self) -> list[Tensor]:
        """Start the group after the next, and wait for the next."""
        if self._coming is None:
            raise StopIteration
        arriving, self._coming = self._coming, self._start()
        whole: dict[int, Tensor] = {}
        with self._naming():
            for places, message in arriving:
                whole |= zip(places, message.results(), strict=True)
        return [whole[place] for place in sorted(whole)]

    def _start(self) -> list[tuple[list[int], Message]] | None:
        group = next(self._groups, None)
        if group is None:
            return None
        xs, dims = [self._source[name] for name in group], list(group.values())
        with self._naming():
            return [
                (places, start_all_gather([xs[i] for i in places], self._axis, [dims[i] for i in places]))
                for places in buckets(xs)
            ]
