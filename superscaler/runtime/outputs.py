"""Outputs of an inference build: pieces from every rank, whole tensors in one file.

An output whose first dim is the batch has a row per sample (or a fixed number of rows). Any other is written
once per batch: the file's first dim counts batches.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from superscaler.ir.mesh import TIME
from superscaler.runtime.build import Build, Output
from superscaler.runtime.safetensors_files import Header, TensorFiles, write_stream


class OutputFile:
    """Collects one rank's outputs batch by batch, and writes those of all ranks as one file.

    Args:
        path: The file, on a file system all ranks share: pieces are first written beside it.
        build: Says which rank holds what.
        rank: This process.
    """

    def __init__(self, path: Path | str, build: Build, rank: int) -> None:
        self._path, self._build, self._rank = Path(path), build, rank
        self._parts = self._path.with_name(self._path.name + ".pieces")
        self._parts.mkdir(parents=True, exist_ok=True)
        self._batches = 0

    def add(self, outputs: Mapping[str, Tensor]) -> None:
        """Keep what ``infer_step`` returned for one batch."""
        own = {
            name: outputs[name].detach().cpu().contiguous().clone()
            for name, output in self._build.outputs().items()
            if output.tensor.is_on(self._rank) and output.tensor.is_first_copy(self._rank)
        }
        save_file(own, self._file(self._rank, self._batches))
        self._batches += 1

    def write(self, samples: int, meet: Callable[[], None]) -> None:
        """Write the file; every rank calls this.

        Args:
            samples: How many there are; the last batch may hold others again behind them.
            meet: Returns once every rank has called it.
        """
        meet()
        if self._rank == 0:
            outputs = self._build.outputs()
            headers = {name: self._header(output, samples) for name, output in outputs.items()}
            write_stream(self._path, headers, lambda name: self._whole(outputs[name], headers[name]), {})
            shutil.rmtree(self._parts)
        meet()

    def _file(self, rank: int, batch: int) -> Path:
        return self._parts / f"rank{rank}.batch{batch}.safetensors"

    def _header(self, output: Output, samples: int) -> Header:
        shape, dtype = output.tensor.shape, output.tensor.dtype
        if not output.rows_per_sample:
            return Header((self._batches, *shape), dtype)
        return Header((samples * output.rows_per_sample, *shape[1:]), dtype)

    def _whole(self, output: Output, header: Header) -> Tensor:
        assert isinstance(header.dtype, torch.dtype)
        whole = torch.empty(header.shape, dtype=header.dtype)
        for batch in range(self._batches):
            pieces = {}
            for rank in output.tensor.layout.mesh.devices:
                if output.tensor.is_first_copy(rank):
                    files = TensorFiles(self._file(rank, batch))
                    pieces[rank] = files.read(output.name, [])
            value = join_pieces(output, pieces, self._build.micro_batches)
            if not output.rows_per_sample:
                whole[batch] = value
                continue
            start = batch * output.tensor.shape[0]
            part = whole[start : start + output.tensor.shape[0]]
            part.copy_(value[: part.shape[0]])
        return whole


def join_pieces(output: Output, pieces: Mapping[int, Tensor], micro_batches: int) -> Tensor:
    """The whole output of one batch, from what ``infer_step`` returned on the ranks that hold a first copy."""
    tensor = output.tensor
    first = next(iter(pieces.values()))
    fine = torch.empty(tensor.layout.sizes, dtype=tensor.dtype, device=first.device)
    dim = _dim_cut_in_time(output)
    for rank, piece in pieces.items():
        if dim is None:
            counts, parts = [0], [piece]
        else:  # the micro-batches' results were joined along this dim
            counts = list(range(micro_batches))
            parts = piece.split([tensor.local_shape(rank, number)[dim] for number in counts], dim)
        for number, part in zip(counts, parts, strict=True):
            region = tensor.region(rank, number)
            fine[tuple(slice(*interval) for interval in region.intervals)] = part.reshape(region.shape)
    return fine.view(tensor.shape)


def local_shape(output: Output, rank: int, micro_batches: int) -> tuple[int, ...]:
    """The shape of what ``infer_step`` returns on a rank for one batch: the micro-batches' results joined."""
    dim, shape = _dim_cut_in_time(output), output.tensor.local_shape(rank)
    if dim is None:
        return shape
    joined = sum(output.tensor.local_shape(rank, number)[dim] for number in range(micro_batches))
    return (*shape[:dim], joined, *shape[dim + 1 :])


def _dim_cut_in_time(output: Output) -> int | None:
    position = 0
    for dim, sizes in enumerate(output.tensor.fine):
        if any(TIME in cut for cut in output.tensor.layout.cuts[position : position + len(sizes)]):
            return dim
        position += len(sizes)
    return None
