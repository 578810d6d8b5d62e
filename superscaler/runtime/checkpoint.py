"""Write all ranks' pieces of weights and optimizer states: as one .safetensors file, or as a checkpoint folder.

A folder is as `transformers` writes it: ``model.safetensors``, or shards and their index, with the configuration
and tokenizer files of the folder the weights came from. File or folder appears under its name once it is whole.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from superscaler.errors import BuildError
from superscaler.ir.tensor import Role
from superscaler.runtime.build import Build, UnreadTensor
from superscaler.runtime.safetensors_files import (
    INDEX,
    STATES,
    WHOLE,
    Header,
    TensorFiles,
    sync_folder,
    write_stream,
)
from superscaler.runtime.stored_tensor import StoredTensor
from superscaler.runtime.weights import WEIGHTS, WEIGHTS_FILE, names_in

SHARD_BYTES = 5_000_000_000
"""How large a file of a checkpoint folder may be; a larger tensor has a file of its own."""
_COMPANIONS = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".py"}
"""Suffixes of what a checkpoint folder holds beside weights: configuration, tokenizer, code."""


def check_target(path: Path | str) -> None:
    """Refuse, before any work is done, a path that `save_weights` would not replace.

    Raises:
        BuildError: There is a folder that is no checkpoint, or a folder where a file is meant, or the reverse.
    """
    path = Path(path)
    if not path.exists():
        return
    if is_file(path):
        fault = "" if path.is_file() else "is a folder, and its name that of a file"
    elif path.is_dir():
        holds = {INDEX, WHOLE} & {item.name for item in path.iterdir()}
        fault = "" if holds or not any(path.iterdir()) else "exists and is no checkpoint"
    else:
        fault = "is a file, and its name that of a folder"
    if fault:
        raise BuildError(
            f"cannot save to {path}: it {fault}",
            remedy="name a new file that ends in .safetensors, or a new folder",
        )


def is_file(path: Path) -> bool:
    """Whether a path to save to means one file, and not a folder."""
    return path.suffix == ".safetensors"


def save_weights(
    path: Path | str,
    build: Build,
    rank: int,
    tensors: Mapping[str, Tensor],
    meet: Callable[[], None],
    *,
    step: int,
    with_states: bool = False,
    source: Path | str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write whole tensors, of which no rank ever holds more than one besides its own pieces; all ranks call this.

    Args:
        path: A file where it ends in ``.safetensors``, else a folder, on a file system all ranks share: pieces
            are first written beside it. What is there is replaced, once all of the new is written.
        build: Says which rank holds what.
        rank: This process.
        tensors: This rank's weights, and states where asked for.
        meet: Returns once every rank has called it.
        step: How many steps the weights have seen.
        with_states: Whether to write optimizer states too.
        source: The file or folder the weights came from: its names of tied tensors are kept, and what the
            programs do not read, be it tensors or configuration files, is copied.
        shard_bytes: With a folder: how large its files may be.

    Raises:
        BuildError: It cannot be written.
    """
    path = Path(os.path.abspath(path))
    with _explained(path):
        check_target(path)
        parts, fresh = _beside(path, "pieces"), _beside(path, "unfinished")
        if rank == 0:
            _remove(fresh)
            path.parent.mkdir(parents=True, exist_ok=True)
        roles = (*WEIGHTS, Role.STATE) if with_states else WEIGHTS
        _write_pieces(parts, build, rank, tensors, roles)
        meet()
        checkpoint = _Checkpoint(build, source, parts, {"format": "pt", "step": str(step)})
        states = dict(build.tensors(Role.STATE)) if with_states else {}
        if not is_file(path):
            _write_folder(fresh, checkpoint, states, rank, meet, shard_bytes)
        elif rank == 0:
            checkpoint.write(fresh, {**checkpoint.weights, **states})
        if rank == 0:
            _replace(path, fresh)
            checkpoint.opened.clear()
            shutil.rmtree(parts)
        meet()


class _Checkpoint:
    """What there is to write, by name, and where its values are."""

    def __init__(
        self, build: Build, source: Path | str | None, parts: Path, metadata: dict[str, str]
    ) -> None:
        self.source = None if source is None else TensorFiles(source)
        kept = build.folder / WEIGHTS_FILE
        self.brought = TensorFiles(kept) if kept.is_file() else None
        self.parts = parts
        self.metadata = metadata
        self.opened: dict[int, TensorFiles] = {}
        self.weights: dict[str, StoredTensor | UnreadTensor] = {
            name: tensor
            for tensor in build.tensors(*WEIGHTS).values()
            for name in names_in(self.source, tensor)
        }
        for tensor in build.unread.values():
            self.weights |= {name: tensor for name in tensor.saved_as if self._file_with(name)}

    def write(self, path: Path, contents: Mapping[str, StoredTensor | UnreadTensor]) -> None:
        """Write some of it as one file."""
        headers = {name: Header(tensor.shape, tensor.dtype) for name, tensor in contents.items()}
        write_stream(path, headers, lambda name: self._read(name, contents[name]), self.metadata)

    def _read(self, name: str, tensor: StoredTensor | UnreadTensor) -> Tensor:
        if isinstance(tensor, StoredTensor):
            return _assemble(tensor, self.parts, self.opened)
        files = self._file_with(name)
        assert files is not None
        return files.read(name, []).to(tensor.dtype)

    def _file_with(self, name: str) -> TensorFiles | None:
        """Where a tensor that no program reads has its value."""
        files = [found for found in (self.source, self.brought) if found and name in found.headers]
        return files[0] if files else None


def _write_pieces(
    parts: Path, build: Build, rank: int, tensors: Mapping[str, Tensor], roles: Iterable[Role]
) -> None:
    """This rank's pieces, one after another, save those another rank writes."""
    parts.mkdir(parents=True, exist_ok=True)
    own = {
        name: tensor
        for name, tensor in build.tensors(*roles).items()
        if rank in tensor.layout.mesh.devices and tensor.is_first_copy(rank)
    }
    headers = {name: Header(tensor.local_shape(rank), tensor.dtype) for name, tensor in own.items()}
    write_stream(
        parts / f"rank{rank}.safetensors", headers, lambda name: tensors[own[name].name].detach().cpu(), {}
    )


def _assemble(tensor: StoredTensor, parts: Path, opened: dict[int, TensorFiles]) -> Tensor:
    """A whole tensor from the pieces ranks wrote."""
    fine = torch.empty(tensor.layout.sizes, dtype=tensor.dtype)
    for rank in tensor.layout.mesh.devices:
        if not tensor.is_first_copy(rank):
            continue
        if rank not in opened:
            opened[rank] = TensorFiles(parts / f"rank{rank}.safetensors")
        region = tensor.region(rank)
        piece = opened[rank].read(tensor.source, [[(0, size)] for size in tensor.local_shape(rank)])
        fine[tuple(slice(start, stop) for start, stop in region.intervals)] = piece.view(region.shape)
    return fine.view(tensor.shape)


def _write_folder(
    folder: Path, checkpoint: _Checkpoint, states: Mapping[str, StoredTensor], rank: int,
    meet: Callable[[], None], shard_bytes: int,
) -> None:  # fmt: skip
    """The files of a checkpoint folder; ranks take turns at them."""
    folder.mkdir(exist_ok=True)
    files = shards(checkpoint.weights, shard_bytes)
    contents: dict[str, Mapping[str, Any]] = {
        file: {name: checkpoint.weights[name] for name in names} for file, names in files.items()
    }
    if states:
        contents[STATES] = states
    writers = sorted({device for tensor in checkpoint.weights.values() for device in _holders(tensor)})
    for i, (file, tensors) in enumerate(contents.items()):
        if writers[i % len(writers)] == rank:
            checkpoint.write(folder / file, tensors)
    meet()
    if rank != 0:
        return
    if len(files) > 1:
        index = {
            "metadata": {"total_size": sum(map(num_bytes, checkpoint.weights.values()))},
            "weight_map": {name: file for file, names in files.items() for name in names},
        }
        _write_text(folder / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")
    if checkpoint.source and checkpoint.source.path.is_dir():
        _copy_companions(checkpoint.source.path, folder, checkpoint.weights)


def shards(tensors: Mapping[str, StoredTensor | UnreadTensor], shard_bytes: int) -> dict[str, list[str]]:
    """File name -> the names it holds, in order, each file as full as may be."""
    runs: list[list[str]] = [[]]
    used = 0
    for name, tensor in tensors.items():
        if runs[-1] and used + num_bytes(tensor) > shard_bytes:
            runs.append([])
            used = 0
        runs[-1].append(name)
        used += num_bytes(tensor)
    if len(runs) == 1:
        return {WHOLE: runs[0]}
    stem = WHOLE.removesuffix(".safetensors")
    return {f"{stem}-{i:05}-of-{len(runs):05}.safetensors": run for i, run in enumerate(runs, 1)}


def num_bytes(tensor: StoredTensor | UnreadTensor) -> int:
    """Bytes of a whole tensor."""
    return prod(tensor.shape) * tensor.dtype.itemsize


def _holders(tensor: StoredTensor | UnreadTensor) -> tuple[int, ...]:
    return tensor.layout.mesh.devices if isinstance(tensor, StoredTensor) else ()


def _copy_companions(source: Path, folder: Path, tensors: Mapping[str, Any]) -> None:
    """What a checkpoint holds beside weights; its configuration names the dtype that is now written."""
    floats = [tensor.dtype for tensor in tensors.values() if tensor.dtype.is_floating_point]
    for file in sorted(source.iterdir()):
        if file.suffix not in _COMPANIONS or file.name.endswith(".index.json") or not file.is_file():
            continue
        text = file.read_bytes()
        if file.name == "config.json" and floats:
            config = json.loads(text)
            stated = {
                key: str(floats[0]).removeprefix("torch.")
                for key in ("dtype", "torch_dtype")
                if config.get(key)
            }
            text = (json.dumps({**config, **stated}, indent=2) + "\n").encode() if stated else text
        _write_text(folder / file.name, text)


def _write_text(path: Path, text: str | bytes) -> None:
    with path.open("wb") as file:
        file.write(text.encode() if isinstance(text, str) else text)
        file.flush()
        os.fsync(file.fileno())


def _replace(path: Path, fresh: Path) -> None:
    """Give what is written the name it is meant to have; what had that name goes only then."""
    if fresh.is_dir():
        sync_folder(fresh)
    old = _beside(path, "replaced")
    if path.is_dir():
        _remove(old)
        path.rename(old)
    fresh.replace(path)
    sync_folder(path.parent)
    _remove(old)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _explained(path: Path) -> Any:
    try:
        yield
    except OSError as error:
        raise BuildError(
            f"cannot save to {path}: {error}", remedy="free space there, or name another path"
        ) from error
