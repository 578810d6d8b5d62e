"""Runtime: the words in which generated programs move tensors between ranks."""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, overload

import torch
import torch.distributed as dist
from torch import Tensor

from superscaler.errors import SuperscalerError
from superscaler.ir.mesh import Mesh, format_devices
from superscaler.runtime.exchange import Exchange, Move, exchange_groups, read_exchange
from superscaler.runtime.fetched_ahead import FetchedAhead, carrier_of
from superscaler.runtime.flat_messages import (
    apply_joined,
    buckets,
    join_pieces,
    lead_with_pieces,
    overwrite,
)
from superscaler.runtime.groups import Axis, Giver, Way, create_groups, named_axes, partner
from superscaler.runtime.host_memory import HostMoves, in_host_memory
from superscaler.runtime.pending_sends import PendingSends
from superscaler.runtime.started import (
    GatheredAhead,
    Reduction,
    Reductions,
    start_all_gather,
    start_reduce_scatter,
)
from superscaler.runtime.waits import Waits

MARGIN = 30.0
"""By how much time-outs of torch are longer than a watchdog's, in seconds, so that its report comes first."""
REDUCERS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}


class CommunicationError(SuperscalerError):
    """A communication failed or took longer than the timeout, mostly because another rank is gone."""


@contextmanager
def naming_failures(what: str, remedy: str) -> Iterator[None]:
    """Turn a failure of torch.distributed into a `CommunicationError`: `what` failed, and torch's first line of why."""
    try:
        yield
    except CommunicationError:
        raise
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CommunicationError(f"{what}: {reason}", remedy=remedy) from error


class Runtime:
    """What one rank knows of the others. Every rank of the plan makes one, at the same time.

    Args:
        rank: This process.
        stages: The mesh of each stage, in order; a rank may take part in several.
        device: Where this rank's tensors are.
        messages: The pairs of stages between which messages travel, the one that sends first.
        exchanges: ``plan.json``'s table of irregular redistributions.
        sizes: Sizes that vary, and what they are now.
        timeout: Longest wait of one communication, in seconds.
        waits: Told of every communication. Whoever reads it ends those that take longer, before torch does.
    """

    def __init__(
        self,
        rank: int,
        stages: Sequence[Mesh],
        device: torch.device | str = "cpu",
        *,
        messages: Iterable[tuple[int, int]] = (),
        exchanges: Mapping[str, Any] | None = None,
        sizes: Mapping[str, int] | None = None,
        timeout: float = 600.0,
        waits: Waits | None = None,
    ) -> None:
        exchanges = exchanges or {}
        self._waits = waits or Waits(device)
        limit = timeout + (MARGIN if waits else 0.0)
        self.rank, self.stages, self.device, self.timeout = rank, tuple(stages), torch.device(device), timeout
        self._own = tuple(number for number, mesh in enumerate(self.stages) if rank in mesh.devices)
        self.use_sizes(sizes or {}, exchanges)
        with self._naming("creating process groups", "all axes", self._everyone()):
            self._groups = create_groups(
                rank,
                self.stages,
                messages,
                exchange_groups(exchanges),
                self.device,
                timedelta(seconds=limit),
            )
        self.axes = named_axes(self._groups.axes)
        """Every axis, by its name and a stage, or by its name and None where this rank's stages agree."""
        self._sends = PendingSends(is_gloo=self.device.type == "cpu")
        self._reductions = Reductions()
        self._accumulated = Reductions()
        """Of what micro-batches add up: what they start themselves is waited for without it."""
        self._host_moves = HostMoves(self.device)
        self._carrier = carrier_of(self.device)
        self._handed: defaultdict[tuple[int, int] | str, deque[Tensor]] = defaultdict(deque)

    def use_sizes(self, sizes: Mapping[str, int], exchanges: Mapping[str, Any]) -> None:
        """Take the sizes of another batch, and the redistributions for them; every rank does so."""
        self._sizes = dict(sizes)
        self._exchanges = {name: read_exchange(table, self.rank) for name, table in exchanges.items()}

    def size(self, name: str) -> int:
        """What the size `name`, which varies, is for the batch at hand."""
        return self._sizes[name]

    def axis(self, name: str, stage: int | None = None) -> Axis:
        """The axis `name` of the mesh of one of this rank's stages, or of all of them that have it, if these agree."""
        found = self.axes.get((name, stage))
        assert found or any(own == name for own, _ in self.axes), (
            f"no mesh of rank {self.rank} has an axis {name!r}"
        )
        assert found, f"stages of rank {self.rank} differ in the axis {name!r}"
        return found

    # host memory

    def to_host(self, x: Tensor) -> Tensor:
        """A copy in host memory."""
        return in_host_memory(x, self.device)

    def to_device(self, x: Tensor) -> Tensor:
        """A copy on this rank's device of what lies in host memory."""
        return x.to(self.device, copy=True)

    def stow(self, *x: Tensor) -> tuple[Tensor, ...]:
        """What a forward leaves for its backward, moved to host memory while the device computes."""
        return self._host_moves.stow(x)

    def fetch(self, *x: Tensor) -> tuple[Tensor, ...]:
        """What was stowed, on this rank's device again."""
        return self._host_moves.fetch(x)

    def fetch_ahead(
        self, source: Mapping[str, Tensor], groups: Sequence[Sequence[str]]
    ) -> Iterator[list[Tensor]]:
        """Groups of tensors from host memory, on this rank's device; the next is on its way while one is used.

        Args:
            source: The tensors, by name.
            groups: The names of each group, in the order of use.
        """
        return FetchedAhead(source, groups, self._carrier)

    # collectives

    @overload
    def all_reduce(self, x: Tensor, axis: Axis, op: str = "sum") -> Tensor: ...
    @overload
    def all_reduce(self, x: list[Tensor], axis: Axis, op: str = "sum") -> list[Tensor]: ...
    def all_reduce(self, x: Tensor | list[Tensor], axis: Axis, op: str = "sum") -> Tensor | list[Tensor]:
        """Combine over `axis`, overwriting `x`, which is returned.

        `op` is sum, max or logsumexp. A list of tensors travels in few messages, joined by dtype.
        """
        if axis.size == 1:
            return x

        def change(flat: Tensor) -> Tensor:
            return self._log_sum_exp(flat, axis) if op == "logsumexp" else self._reduce(flat, axis, op)

        with self._naming(f"all_reduce ({op})", axis.name, axis.ranks):
            if isinstance(x, Tensor):
                return overwrite(x, change)
            apply_joined(x, change)
        return x

    @overload
    def reduce_scatter(self, x: Tensor, axis: Axis, dim: int) -> Tensor: ...
    @overload
    def reduce_scatter(self, x: list[Tensor], axis: Axis, dim: list[int]) -> list[Tensor]: ...
    def reduce_scatter(
        self, x: Tensor | list[Tensor], axis: Axis, dim: int | list[int]
    ) -> Tensor | list[Tensor]:
        """Sum over `axis`; this rank keeps its piece of `dim`, as a new tensor. Lists: one dim per tensor."""
        if isinstance(x, Tensor):
            assert isinstance(dim, int)
            return self.reduce_scatter([x], axis, [dim])[0]
        assert not isinstance(dim, int)
        if axis.size == 1:
            return x
        results: list[Tensor] = list(x)
        with self._naming("reduce_scatter", axis.name, axis.ranks):
            for indices in buckets(x):
                message = start_reduce_scatter([x[i] for i in indices], axis, [dim[i] for i in indices])
                for index, piece in zip(indices, message.results(), strict=True):
                    results[index] = piece
        return results

    @overload
    def all_gather(self, x: Tensor, axis: Axis, dim: int) -> Tensor: ...
    @overload
    def all_gather(self, x: list[Tensor], axis: Axis, dim: list[int]) -> list[Tensor]: ...
    def all_gather(self, x: Tensor | list[Tensor], axis: Axis, dim: int | list[int]) -> Tensor | list[Tensor]:
        """Join the pieces along `axis` into a new tensor, along `dim`. Lists: one dim per tensor."""
        if isinstance(x, Tensor):
            assert isinstance(dim, int)
            return self.all_gather([x], axis, [dim])[0]
        assert not isinstance(dim, int)
        if axis.size == 1:
            return x
        results: list[Tensor] = list(x)
        with self._naming("all_gather", axis.name, axis.ranks):
            for indices in buckets(x):
                message = start_all_gather([x[i] for i in indices], axis, [dim[i] for i in indices])
                for index, whole in zip(indices, message.results(), strict=True):
                    results[index] = whole
        return results

    def all_to_all(self, x: Tensor, axis: Axis, split_dim: int, concat_dim: int) -> Tensor:
        """From cut along `concat_dim` to cut along `split_dim`: a new tensor."""
        if axis.size == 1:
            return x
        with self._naming("all_to_all", axis.name, axis.ranks):
            pieces = axis.to_group(lead_with_pieces(x, split_dim, axis.size)).contiguous()
            received = torch.empty_like(pieces)
            dist.all_to_all_single(received.view(-1), pieces.view(-1), group=axis.group)
        return join_pieces(axis.from_group(received), concat_dim)

    def start_all_reduce(self, x: Tensor, axis: Axis, into: dict[str, Tensor], name: str) -> None:
        """Start to sum `x` over `axis`; `wait` puts the sum into ``into[name]``, or adds it there.

        A small `x` is copied, a large one overwritten: either way it is not to be used any more.
        """
        with self._naming("start_all_reduce", axis.name, axis.ranks):
            self._reductions.start(Reduction(x, axis, None, into, name))

    def start_reduce_scatter(
        self, x: Tensor, axis: Axis, dim: int, into: dict[str, Tensor], name: str
    ) -> None:
        """As `start_all_reduce`, of this rank's piece of `dim`; until then `x` must stay as it is."""
        with self._naming("start_reduce_scatter", axis.name, axis.ranks):
            self._reductions.start(Reduction(x, axis, dim, into, name))

    def accumulate(
        self,
        x: Tensor,
        axis: Axis,
        into: dict[str, Tensor],
        name: str,
        is_last: bool,
        dim: int | None = None,
    ) -> None:
        """Add `x`, of one micro-batch, to ``into[name]``; the last one starts the sum over `axis`, as above.

        `wait_accumulated` waits for it, `wait` does not.

        Args:
            x: Not to be used any more.
            axis: The ranks that sum.
            into: Where the sum is put.
            name: Under which.
            is_last: Whether all other micro-batches have added theirs.
            dim: Of which this rank keeps its piece; None: it keeps all.
        """
        with self._naming("accumulate", axis.name, axis.ranks):
            self._accumulated.accumulate(Reduction(x, axis, dim, into, name), is_last=is_last)

    def wait(self, leaving: int = 0) -> None:
        """Wait for what was started, but not for the last `leaving` of it."""
        with self._naming("wait", "all axes", self._everyone()):
            self._reductions.wait(leaving)

    def wait_accumulated(self) -> None:
        """Wait for the sums of what all micro-batches have added up."""
        with self._naming("wait_accumulated", "all axes", self._everyone()):
            self._accumulated.wait()

    def gather_ahead(
        self,
        source: Mapping[str, Tensor],
        groups: Sequence[Sequence[str]],
        axis: Axis,
        along: Mapping[int, Iterable[str]] | None = None,
    ) -> Iterator[list[Tensor]]:
        """Groups of tensors, each joined over `axis` into new ones; the next is on its way while one is used.

        Args:
            source: This rank's pieces, by name.
            groups: The names of each group, in the order of use.
            axis: The ranks that hold the pieces.
            along: Dim -> the names whose pieces are joined along it; all others are along dim 0.
        """
        dims = {name: dim for dim, names in (along or {}).items() for name in names}
        return GatheredAhead(
            source,
            [{name: dims.get(name, 0) for name in names} for names in groups],
            axis,
            lambda: self._naming("gather_ahead", axis.name, axis.ranks),
        )

    def send(self, x: Tensor, stage: int, source: int | None = None) -> None:
        """Start sending `x` to this rank's partner in `stage`; `x` may be freed, but not overwritten.

        Args:
            x: What to send.
            stage: The stage that receives. The partner may be this rank itself.
            source: The stage that sends; may be left out where this rank takes part in one only.
        """
        source = self._one_of_own(source)
        receiver = partner(self.rank, self.stages[source], self.stages[stage])
        if receiver == self.rank:
            self._handed[source, stage].append(x.clone(memory_format=torch.contiguous_format))
            return
        with self._naming("send", f"stage {stage}", (self.rank, receiver)):
            way = Way(source, stage, self.rank, receiver)
            self._transfer(self._groups.messages[way], sent=[(receiver, x.contiguous())])

    def receive(
        self, shape: Sequence[int], dtype: torch.dtype, stage: int, target: int | None = None
    ) -> Tensor:
        """Wait for a tensor of `shape` from this rank's partner in `stage`.

        Args:
            shape: Of what is sent.
            dtype: Of what is sent.
            stage: The stage that sends.
            target: The stage that receives; may be left out where this rank takes part in one only.
        """
        target = self._one_of_own(target)
        sender = partner(self.rank, self.stages[target], self.stages[stage])
        with self._naming("receive", f"stage {stage}", (self.rank, sender)):
            if sender == self.rank:
                return self._take_handed((stage, target))
            x = torch.empty(tuple(shape), dtype=dtype, device=self.device)
            way = Way(stage, target, sender, self.rank)
            self._transfer(self._groups.messages[way], received=[(sender, x)])
        return x

    def give(self, x: Tensor, name: str) -> None:
        """Start handing out `x`, this rank's piece, by the plan's table `name`; does not wait, as `send`.

        Every rank of the stage that gives calls this, every rank of the one that takes calls `take`.
        """
        table = self._exchanges[name]
        with self._naming("exchange", name, table.ranks):
            sent = self._boxes_to_send(x, name)
            if sent:
                self._transfer(self._groups.exchanges[Giver(name, self.rank)], sent=sent)

    def take(self, name: str) -> Tensor:
        """Wait for this rank's new piece by the plan's table `name`, which is sent with `give`."""
        table = self._exchanges[name]
        with self._naming("exchange", name, table.ranks):
            boxes = self._boxes_to_fill(name)
            for sender in dict.fromkeys(move.source for move, _ in boxes if not move.is_local):
                received = [(sender, box) for move, box in boxes if move.source == sender]
                self._transfer(self._groups.exchanges[Giver(name, sender)], received=received)
        return self._put_together(table, boxes)

    def exchange(self, x: Tensor, name: str) -> Tensor:
        """Redistribute `x` within one stage by the plan's table `name`; returns this rank's new piece.

        Every rank of the stage calls this. It gives and takes at once.
        """
        table = self._exchanges[name]
        with self._naming("exchange", name, table.ranks):
            sent, boxes = self._boxes_to_send(x, name), self._boxes_to_fill(name)
            received = [(move.source, box) for move, box in boxes if not move.is_local]
            if sent or received:
                self._transfer(self._groups.exchanges[Giver(name)], sent, received)
        return self._put_together(table, boxes)

    def finish(self) -> None:
        """Wait until everything sent has left."""
        with self._naming("send", "all stages", self._everyone()):
            self._sends.wait()

    def _transfer(
        self,
        group: Any,
        sent: Sequence[tuple[int, Tensor]] = (),
        received: Sequence[tuple[int, Tensor]] = (),
    ) -> None:
        """Send to and receive from the ranks named beside each tensor, at once; waits where this rank receives."""
        requests = [dist.P2POp(dist.isend, x, rank, group=group) for rank, x in sent]
        requests += [dist.P2POp(dist.irecv, x, rank, group=group) for rank, x in received]
        for work in dist.batch_isend_irecv(requests):
            if received:
                work.wait()
            else:  # a rank that waited here could wait for one that waits for it
                self._sends.add(work, [x for _, x in sent])

    def _boxes_to_send(self, x: Tensor, name: str) -> list[tuple[int, Tensor]]:
        """What other ranks get of `x`; what this one keeps for itself is laid aside."""
        table = self._exchanges[name]
        boxes = [(move, table.box_to_send(x, move)) for move in table.moves if move.source == self.rank]
        self._handed[name].extend(box for move, box in boxes if move.is_local)
        return [(move.target, box) for move, box in boxes if not move.is_local]

    def _boxes_to_fill(self, name: str) -> list[tuple[Move, Tensor]]:
        """What this rank gets: empty where another rank sends it."""
        table = self._exchanges[name]
        return [
            (move, self._take_handed(name) if move.is_local else table.empty_box(move, self.device))
            for move in table.moves
            if move.target == self.rank
        ]

    def _put_together(self, table: Exchange, boxes: Sequence[tuple[Move, Tensor]]) -> Tensor:
        target = table.empty_target(self.device)
        for move, box in boxes:
            table.put(target, move, box)
        return target.view(table.target_shape or ())

    def _take_handed(self, way: tuple[int, int] | str) -> Tensor:
        """The next of what this rank handed to itself between two stages, or in an exchange."""
        if not self._handed[way]:
            raise RuntimeError("this rank has handed nothing to itself yet")
        return self._handed[way].popleft()

    def _reduce(self, x: Tensor, axis: Axis, op: str) -> Tensor:
        dist.all_reduce(x, op=REDUCERS[op], group=axis.group)
        return x

    def _log_sum_exp(self, x: Tensor, axis: Axis) -> Tensor:
        largest = self._reduce(x.clone(), axis, "max")
        largest.masked_fill_(largest == float("-inf"), 0.0)
        self._reduce(x.sub_(largest).exp_(), axis, "sum")
        return x.log_().add_(largest)

    def _one_of_own(self, stage: int | None) -> int:
        if stage is not None:
            return stage
        assert len(self._own) == 1, f"rank {self.rank} takes part in the stages {self._own}: name one"
        return self._own[0]

    def _everyone(self) -> tuple[int, ...]:
        return tuple(sorted({device for mesh in self.stages for device in mesh.devices}))

    @contextmanager
    def _naming(self, operation: str, where: str, ranks: Sequence[int]) -> Iterator[None]:
        """Turn a failure of torch.distributed into an error that names the operation, ranks and rank."""
        self._waits.begin(operation, where, ranks)
        what = f"{operation} over {where} (ranks {format_devices(tuple(ranks))}) failed on rank {self.rank}"
        remedy = "look for the first error of another rank; where ranks are only slow, raise --timeout"
        try:
            with naming_failures(what, f"{remedy} (now {self.timeout:g} seconds)"):
                yield
        finally:
            self._waits.end()
