"""Tensors in .safetensors files: one file, or a folder of them; read in part, written as a stream."""

import ctypes
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from superscaler.errors import BuildError
from superscaler.runtime.stored_tensor import Runs

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
WHOLE = "model.safetensors"
"""The file of a checkpoint folder that holds all weights; where there are several there is an `INDEX`."""
INDEX = "model.safetensors.index.json"
STATES = "optimizer.safetensors"
"""The file of a checkpoint folder that holds optimizer states."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype | str
    """A string where torch has no such dtype here."""


class TensorFiles:
    """The tensors of a .safetensors file, or of a folder with ``model.safetensors`` or its index.

    Optimizer states that superscaler wrote into the folder are among them.

    Raises:
        BuildError: There is no such file, or it is damaged.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        files = _files(self.path)
        self.headers: dict[str, Header] = {}
        self.metadata: dict[str, str] = {}
        self._handles: dict[str, Any] = {}
        for file in files:
            try:
                handle: Any = safe_open(file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise BuildError(
                    f"{file} cannot be read as safetensors: {error}",
                    remedy="write it again; it may be cut short",
                ) from error
            self.metadata.update(handle.metadata() or {})
            for name in handle.keys():  # noqa: SIM118 (no dict)
                part = handle.get_slice(name)
                kind = str(part.get_dtype())
                self.headers[name] = Header(tuple(part.get_shape()), DTYPES.get(kind, kind))
                self._handles[name] = handle

    def read(self, name: str, runs: list[Runs]) -> Tensor:
        """The elements of tensor `name` at `runs`, per dim; only what is needed is read."""
        handle = self._handles[name]
        if not runs:
            return handle.get_tensor(name)
        part = handle.get_slice(name)
        leading = runs[0]
        if not all(runs):
            return handle.get_slice(name)[(slice(0, 0),) * len(runs)].new_empty([_count(r) for r in runs])
        inner = tuple(slice(dim[0][0], dim[-1][1]) for dim in runs[1:])
        if _is_worth_pieces(leading):
            x = torch.cat([part[(slice(start, stop), *inner)] for start, stop in leading])
        else:
            x = _select(part[(slice(leading[0][0], leading[-1][1]), *inner)], 0, leading)
        for dim, dim_runs in enumerate(runs[1:], 1):
            x = _select(x, dim, dim_runs)
        x = x.contiguous()
        # a slice of leading elements is a view that would keep the whole tensor
        return x if x.untyped_storage().nbytes() == x.nbytes else x.clone()


def write_stream(
    path: Path, tensors: Mapping[str, Header], read: Callable[[str], Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a .safetensors file one tensor after another, so that no two need be in memory at once.

    Args:
        path: The file; it appears under this name once it is complete.
        tensors: What will be written.
        read: Gives each tensor, on the CPU, when its turn comes.
        metadata: Strings to keep beside them.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, tensor in tensors.items():
        assert isinstance(tensor.dtype, torch.dtype)
        size = prod(tensor.shape) * tensor.dtype.itemsize
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }  # fmt: skip
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    unfinished = path.with_name(path.name + ".unfinished")
    with unfinished.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            x = read(name).contiguous()
            assert x.shape == tensor.shape, (name, x.shape, tensor)
            assert x.dtype == tensor.dtype, (name, x.dtype, tensor)
            if x.numel():
                file.write((ctypes.c_char * x.nbytes).from_address(x.data_ptr()))
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make sure that names given in a folder survive a crash."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    states = [path / STATES] if (path / STATES).is_file() else []
    if path.is_dir() and (path / INDEX).is_file():
        return [path / name for name in _indexed(path / INDEX)] + states
    if path.is_dir() and (path / WHOLE).is_file():
        return [path / WHOLE, *states]
    raise BuildError(
        f"no tensors at {path}",
        remedy=f"give a .safetensors file, or a folder that holds model.safetensors or {INDEX}",
    )


def _indexed(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BuildError(
            f"{index} is no index of tensors: {type(error).__name__}: {error}",
            remedy="write it again; it may be cut short",
        ) from error


def _count(runs: Iterable[tuple[int, int]]) -> int:
    return sum(stop - start for start, stop in runs)


def _is_worth_pieces(runs: Runs) -> bool:
    """Whether to read run by run, rather than all from the first to the last and then choose."""
    enclosing = runs[-1][1] - min(start for start, _ in runs)
    is_ascending = all(a[1] <= b[0] for a, b in pairwise(runs))
    return len(runs) > 1 and (not is_ascending or enclosing > 2 * _count(runs) or len(runs) <= 16)


def _select(x: Tensor, dim: int, runs: Runs) -> Tensor:
    """From a dim that spans the runs, the runs alone."""
    if len(runs) == 1:
        return x
    first = runs[0][0]
    return x.index_select(dim, torch.cat([torch.arange(start - first, stop - first) for start, stop in runs]))
