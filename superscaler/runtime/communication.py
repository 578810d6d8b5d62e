"""Runtime: the words in which generated programs move tensors between ranks."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, overload

import torch
import torch.distributed as dist
from torch import Tensor

from superscaler.errors import SuperscalerError
from superscaler.ir.mesh import Mesh, format_devices
from superscaler.runtime.exchange import Exchange, exchange_ranks, read_exchange
from superscaler.runtime.flat_messages import (
    apply_joined,
    buckets,
    join_pieces,
    lead_with_pieces,
    overwrite,
    split_columns,
)
from superscaler.runtime.groups import Axis, create_groups
from superscaler.runtime.pending_sends import PendingSends

REDUCERS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}


class CommunicationError(SuperscalerError):
    """A communication failed or took longer than the timeout, mostly because another rank is gone."""


class Runtime:
    """What one rank knows of the others. Every rank of the plan makes one, at the same time.

    Args:
        rank: This process.
        stages: The mesh of each stage, in order; a rank lies in exactly one.
        device: Where this rank's tensors are.
        exchanges: ``plan.json``'s table of irregular redistributions.
        sizes: Sizes that vary, and what they are now.
        timeout: Longest wait of one communication, in seconds.
    """

    def __init__(
        self,
        rank: int,
        stages: Sequence[Mesh],
        device: torch.device | str = "cpu",
        *,
        exchanges: Mapping[str, Any] | None = None,
        sizes: Mapping[str, int] | None = None,
        timeout: float = 600.0,
    ) -> None:
        exchanges = exchanges or {}
        self.rank, self.stages, self.device, self.timeout = rank, tuple(stages), torch.device(device), timeout
        self.stage = next(i for i, mesh in enumerate(self.stages) if rank in mesh.devices)
        self.mesh = self.stages[self.stage]
        self.use_sizes(sizes or {}, exchanges)
        members = {name: exchange_ranks(table) for name, table in exchanges.items()}
        with self._naming("creating process groups", "all axes", self.mesh.devices):
            self._groups = create_groups(rank, self.stages, members, timedelta(seconds=timeout))
        self._sends = PendingSends(is_gloo=self.device.type == "cpu")

    def use_sizes(self, sizes: Mapping[str, int], exchanges: Mapping[str, Any]) -> None:
        """Take the sizes of another batch, and the redistributions for them; every rank does so."""
        self._sizes = dict(sizes)
        self._exchanges = {name: read_exchange(table, self.rank) for name, table in exchanges.items()}

    def size(self, name: str) -> int:
        """What the size `name`, which varies, is for the batch at hand."""
        return self._sizes[name]

    def axis(self, name: str) -> Axis:
        """The axis `name` of this rank's mesh."""
        return self._groups.axes[name]

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
                pieces = [lead_with_pieces(x[i], dim[i], axis.size) for i in indices]
                flat = _join_columns(pieces)
                mine = flat.new_empty(flat.shape[1])
                dist.reduce_scatter_tensor(mine, flat.view(-1), group=axis.group)
                parts = split_columns(mine.unsqueeze(0), [piece.shape[1:] for piece in pieces])
                for index, part in zip(indices, parts, strict=True):
                    results[index] = part[0]
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
                flat = _join_columns([x[i].unsqueeze(0) for i in indices])
                gathered = flat.new_empty(axis.size, flat.shape[1])
                dist.all_gather_into_tensor(gathered.view(-1), flat.view(-1), group=axis.group)
                parts = split_columns(gathered, [x[i].shape for i in indices])
                for index, part in zip(indices, parts, strict=True):
                    results[index] = join_pieces(part, dim[index])
        return results

    def all_to_all(self, x: Tensor, axis: Axis, split_dim: int, concat_dim: int) -> Tensor:
        """From cut along `concat_dim` to cut along `split_dim`: a new tensor."""
        if axis.size == 1:
            return x
        with self._naming("all_to_all", axis.name, axis.ranks):
            pieces = lead_with_pieces(x, split_dim, axis.size).contiguous()
            received = torch.empty_like(pieces)
            dist.all_to_all_single(received.view(-1), pieces.view(-1), group=axis.group)
        return join_pieces(received, concat_dim)

    def send(self, x: Tensor, stage: int) -> None:
        """Start sending `x` to this rank's partner in `stage`; `x` may be freed, but not overwritten."""
        partner, group = self._partner(stage)
        with self._naming("send", f"stage {stage}", (self.rank, partner)):
            x = x.contiguous()
            self._sends.add(dist.isend(x, partner, group=group), x)

    def receive(self, shape: Sequence[int], dtype: torch.dtype, stage: int) -> Tensor:
        """Wait for a tensor of `shape` from this rank's partner in `stage`."""
        partner, group = self._partner(stage, sending=False)
        x = torch.empty(tuple(shape), dtype=dtype, device=self.device)
        with self._naming("receive", f"stage {stage}", (self.rank, partner)):
            dist.recv(x, partner, group=group)
        return x

    def exchange(self, x: Tensor | None, name: str) -> Tensor | None:
        """Redistribute by the plan's table `name`; every rank of the table calls this. Who only sends does not wait.

        Args:
            x: This rank's piece; None where it only receives.
            name: Of the exchange in ``plan.json``.

        Returns:
            This rank's new piece, None where it receives nothing.
        """
        table = self._exchanges[name]
        messages = [
            (move, torch.empty(move.shape, dtype=table.dtype, device=self.device))
            if move.source != self.rank
            else (move, table.box_to_send(_present(x, name), move))
            for move in table.moves
        ]
        with self._naming("exchange", name, table.ranks):
            self._transfer(messages, self._groups.exchanges[name])
        return self._collect(table, [(move, m) for move, m in messages if move.target == self.rank])

    def finish(self) -> None:
        """Wait until everything sent has left."""
        with self._naming("send", "all stages", self.mesh.devices):
            self._sends.wait()

    def _transfer(self, messages: list, group: Any) -> None:
        requests, receives = [], False
        for move, message in messages:
            if move.source == move.target:
                continue
            outgoing = move.source == self.rank
            receives = receives or not outgoing
            peer = move.target if outgoing else move.source
            requests.append(dist.P2POp(dist.isend if outgoing else dist.irecv, message, peer, group=group))
        sent = [message for move, message in messages if move.source == self.rank]
        for work in dist.batch_isend_irecv(requests) if requests else ():
            if receives:
                work.wait()
            else:  # as with send: a stage that waited here could wait for one that waits for it
                self._sends.add(work, sent)

    def _collect(self, table: Exchange, messages: list) -> Tensor | None:
        if table.target_view is None:
            return None
        target = table.empty_target(self.device)
        for move, message in messages:
            table.put(target, move, message)
        return target.view(table.target_shape or ())

    def _reduce(self, x: Tensor, axis: Axis, op: str) -> Tensor:
        dist.all_reduce(x, op=REDUCERS[op], group=axis.group)
        return x

    def _log_sum_exp(self, x: Tensor, axis: Axis) -> Tensor:
        largest = self._reduce(x.clone(), axis, "max")
        largest.masked_fill_(largest == float("-inf"), 0.0)
        self._reduce(x.sub_(largest).exp_(), axis, "sum")
        return x.log_().add_(largest)

    def _partner(self, stage: int, *, sending: bool = True) -> tuple[int, Any]:
        """The rank at this rank's place in another stage, and the group of the direction."""
        partner = self.stages[stage].devices[self.mesh.devices.index(self.rank)]
        is_up = (stage > self.stage) == sending
        return partner, self._groups.up if is_up else self._groups.down

    @contextmanager
    def _naming(self, operation: str, where: str, ranks: Sequence[int]) -> Iterator[None]:
        """Turn a failure of torch.distributed into an error that names the operation, ranks and rank."""
        try:
            yield
        except CommunicationError:
            raise
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CommunicationError(
                f"{operation} over {where} (ranks {format_devices(tuple(ranks))}) failed on rank {self.rank}"
                f": {reason}",
                remedy="look for the first error of another rank; where ranks are only slow, raise --timeout "
                f"(now {self.timeout:g} seconds)",
            ) from error


def _join_columns(parts: Sequence[Tensor]) -> Tensor:
    """[n, *shape] tensors side by side as one contiguous [n, total]."""
    flat = [part.flatten(1) if part.dim() > 1 else part.unsqueeze(1) for part in parts]
    return flat[0].contiguous() if len(flat) == 1 else torch.cat(flat, dim=1)


def _present(x: Tensor | None, name: str) -> Tensor:
    assert x is not None, f"this rank sends in exchange {name!r}, so it must hold a piece"
    return x
