"""Batches from a .safetensors file whose tensors are named as the model's inputs, one sample per row."""

from pathlib import Path

import torch
from torch import Tensor

from superscaler.errors import BuildError
from superscaler.ir.tensor import Role
from superscaler.runtime.build import Build
from superscaler.runtime.safetensors_files import TensorFiles
from superscaler.runtime.stored_tensor import Runs, StoredTensor


class Batches:
    """The batches one rank sees: of step i the rows ``[i * B, (i + 1) * B)``, then the first ones again.

    Args:
        path: The data set.
        build: Says what the inputs are, and B in the first dim of each.
        rank: This process; it reads its own pieces only.
        device: Where batches are put.
        may_repeat: Whether less than one batch of samples will do: they are repeated.

    Raises:
        BuildError: An input is missing, has another dtype or shape, or there are too few samples.
    """

    def __init__(
        self, path: Path | str, build: Build, rank: int, device: torch.device, *, may_repeat: bool = False
    ) -> None:
        self._files = TensorFiles(path)
        self._rank, self._device, self._micro_batches = rank, device, build.micro_batches
        self._inputs = build.program_of(rank).with_role(Role.INPUT)
        self.samples = self._check(build, 1 if may_repeat else 0)
        """How many there are."""
        sizes = [shape[0] for _, shape in build.inputs.values() if shape]
        self.count = -(-self.samples // sizes[0]) if sizes else 1
        """How many batches it takes to see each sample."""

    def micro_batches(self, step: int) -> list[dict[str, Tensor]]:
        """This rank's inputs of each micro-batch of step number `step`, which counts from 0."""
        return [
            {tensor.name: self._read(tensor, step, micro_batch) for tensor in self._inputs}
            for micro_batch in range(self._micro_batches)
        ]

    def _read(self, tensor: StoredTensor, step: int, micro_batch: int) -> Tensor:
        runs = tensor.runs(self._rank, micro_batch)
        if runs:
            first = step * tensor.shape[0]
            runs[0] = wrap_runs([(first + start, first + stop) for start, stop in runs[0]], self.samples)
        return self._files.read(tensor.source, runs).to(self._device)

    def _check(self, build: Build, enough: int) -> int:
        """The number of samples; `enough` of them will do, where 0 stands for one batch."""
        headers, path = self._files.headers, self._files.path
        counts = {}
        for name, (dtype, shape) in build.inputs.items():
            if name not in headers:
                raise BuildError(
                    f"{path} has no input {name!r}; it has {', '.join(headers) or 'nothing'}",
                    remedy="name the tensors of the data set as the model's inputs",
                )
            found = headers[name]
            if found.dtype != dtype or found.shape[1:] != shape[1:] or (found.shape == ()) != (shape == ()):
                raise BuildError(
                    f"input {name!r} in {path} is {found.dtype} {list(found.shape)}, but the model was "
                    f"compiled for {dtype} {['samples', *shape[1:]] if shape else []}",
                    remedy="write the data set as the model reads it, or compile the model for this data",
                )
            if shape:
                counts[name] = found.shape[0]
                if found.shape[0] < (enough or shape[0]):
                    raise BuildError(
                        f"{path} has {found.shape[0]} samples of {name!r}; one batch takes {shape[0]}",
                        remedy="give more data, or compile for a smaller batch",
                    )
        if len(set(counts.values())) > 1:
            raise BuildError(
                f"{path} has inputs of different lengths: {counts}", remedy="one row per sample in each"
            )
        return min(counts.values(), default=1)


def batch_shapes(path: Path | str, build: Build, batch: int | None = None) -> dict[str, tuple[int, ...]]:
    """The shape of each input in one batch of a data set, with `batch` samples or as many as the build has now."""
    headers = TensorFiles(path).headers
    shapes = {}
    for name, (_, shape) in build.inputs.items():
        found = headers[name].shape if name in headers else shape
        shapes[name] = ((batch or shape[0]), *found[1:]) if shape and found else found
    return shapes


def wrap_runs(runs: Runs, count: int) -> Runs:
    """Runs of rows numbered without end, as runs of the `count` rows there are.

    >>> wrap_runs([(6, 11)], 8)
    [(6, 8), (0, 3)]
    """
    wrapped = []
    for start, stop in runs:
        while start < stop:
            row = start % count
            length = min(stop - start, count - row)
            wrapped.append((row, row + length))
            start += length
    return wrapped
