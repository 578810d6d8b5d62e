"""All ranks of a build as one group: what is asked of all of them outside of their programs."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from superscaler.errors import BuildError
from superscaler.runtime.build import Build, Output
from superscaler.runtime.communication import naming_failures
from superscaler.runtime.outputs import join_pieces, local_shape
from superscaler.runtime.pending_sends import PendingSends
from superscaler.runtime.stored_tensor import StoredTensor


class Everyone:
    """All ranks of a build. Every rank makes one at the same time, and calls its methods in the same order.

    Args:
        build: What they run.
        rank: This process.
        device: Where its tensors are.
        timeout: Longest wait for another rank, in seconds.

    Raises:
        BuildError: Another rank has another build, or another torch.
        CommunicationError: Another rank did not come.
    """

    def __init__(self, build: Build, rank: int, device: torch.device, timeout: float) -> None:
        self._build, self._rank, self._device, self._timeout = build, rank, device, timeout
        self._group: Any = None
        self._sends = PendingSends(is_gloo=device.type == "cpu")
        if build.world_size > 1:
            with self._naming("meeting"):
                self._group = dist.new_group(timeout=timedelta(seconds=timeout))
                self._check_same_build()

    def value_of(self, source: int, value: Any) -> Any:
        """What the rank `source` gives as `value`, on every rank; anything that can be pickled."""
        if self._group is None:
            return value
        with self._naming("sharing a value"):
            values = [value]
            dist.broadcast_object_list(values, src=source, group=self._group, device=self._device)
        return values[0]

    def tensor_of(self, source: int, x: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The tensor `x` of the rank `source`, on every rank, on its device."""
        if self._group is None:
            assert x is not None
            return x
        if self._rank == source:
            assert x is not None
            x = x.to(self._device, memory_format=torch.contiguous_format)
        else:
            x = torch.empty(shape, dtype=dtype, device=self._device)
        with self._naming("sharing a tensor"):
            dist.broadcast(x, src=source, group=self._group)
        return x

    def whole(self, tensor: StoredTensor, held: Mapping[str, Tensor]) -> Tensor:
        """A parameter, buffer or state put together from the pieces of all ranks: a new tensor on this rank's device.

        Args:
            tensor: Which.
            held: This rank's pieces, by the name its program uses.
        """
        fine = torch.empty(tensor.layout.sizes, dtype=tensor.dtype, device=self._device)
        for holder in tensor.layout.mesh.devices:
            if not tensor.is_first_copy(holder):
                continue
            piece = held[tensor.name] if holder == self._rank else None
            piece = self.tensor_of(holder, piece, tensor.local_shape(holder), tensor.dtype)
            region = tensor.region(holder)
            fine[tuple(slice(*interval) for interval in region.intervals)] = piece.reshape(region.shape)
        return fine.view(tensor.shape)

    def whole_output(self, output: Output, results: Mapping[str, Tensor], micro_batches: int) -> Tensor:
        """An output of one batch put together from what ``infer_step`` returned on all ranks."""
        pieces = {}
        for holder in output.tensor.layout.mesh.devices:
            if not output.tensor.is_first_copy(holder):
                continue
            piece = results[output.name] if holder == self._rank else None
            shape = local_shape(output, holder, micro_batches)
            pieces[holder] = self.tensor_of(holder, piece, shape, output.tensor.dtype)
        return join_pieces(output, pieces, micro_batches)

    def output_on(
        self, reader: int, output: Output, results: Mapping[str, Tensor], micro_batches: int
    ) -> Callable[[], Tensor]:
        """An output of one batch on one rank alone; the others go on at once, and so does it until it wants it.

        Args:
            reader: Which.
            output: What ``infer_step`` returned pieces of on some ranks.
            results: What it returned on this one.
            micro_batches: Of the batch.

        Returns:
            On the reader, what waits for the whole output.
        """
        pieces: dict[int, Tensor] = {}
        coming: list[Any] = []
        for holder in filter(output.tensor.is_first_copy, output.tensor.layout.mesh.devices):
            if holder == self._rank == reader:
                pieces[holder] = results[output.name]
            elif holder == self._rank:
                piece = results[output.name].contiguous()
                with self._naming("sending an output"):
                    self._sends.add(dist.isend(piece, reader, group=self._group), piece)
            elif self._rank == reader:
                shape = local_shape(output, holder, micro_batches)
                pieces[holder] = torch.empty(shape, dtype=output.tensor.dtype, device=self._device)
                coming.append(dist.irecv(pieces[holder], holder, group=self._group))

        def whole() -> Tensor:
            with self._naming("receiving an output"):
                for work in coming:
                    work.wait()
            return join_pieces(output, pieces, micro_batches)

        return whole

    def _check_same_build(self) -> None:
        own = f"build {self._build.fingerprint[:16]}, torch {torch.__version__}"
        found: list[Any] = [None] * self._build.world_size
        dist.all_gather_object(found, own, group=self._group)
        others = [(rank, one) for rank, one in enumerate(found) if one != found[0]]
        if others:
            rank, one = others[0]
            raise BuildError(
                f"rank {rank} has {one}, but rank 0 has {found[0]}",
                remedy="load the same build folder on every rank, with one version of torch",
            )

    def _naming(self, what: str) -> AbstractContextManager[None]:
        """Turn a failure of torch.distributed into an error that names what was done, and the rank."""
        ranks = f"all {self._build.world_size} ranks of {self._build.name}"
        remedy = "call the same methods on every rank, and look for the first error of another; where ranks are only"
        return naming_failures(
            f"{what} with {ranks} failed on rank {self._rank}",
            f"{remedy} slow, load with a larger timeout (now {self._timeout:g} seconds)",
        )
