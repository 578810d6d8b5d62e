"""What a training checkpoint says of itself: ``checkpoint.json``, with its SHA-256 beside it in a file of its own.

It is DCP's metadata (which pieces of which tensors there are) and storage data (which file holds each) as JSON instead
of a pickle, with the size and digest of every file, and what a run needs beside tensors. It is verified byte for
byte before it is parsed, and parsed strictly: whatever is not as `write_manifest` writes it is an error.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from superscaler.errors import BuildError
from superscaler.runtime.checksummed_file import FileRecord, open_plain
from superscaler.runtime.safetensors_files import DTYPE_NAMES, DTYPES, Header, sync_folder

FORMAT = 1
MANIFEST = "checkpoint.json"
DIGEST = "checkpoint.json.sha256"
"""As ``sha256sum`` writes it, so that ``sha256sum --check`` reads it."""
_FILE_NAME = re.compile(r"rank\d{5,9}\.safetensors")
_LONGEST = 2**30
"""Bytes of a manifest."""
_LARGEST = 2**62


@dataclass(frozen=True, slots=True)
class StoredPiece:
    """A box of a tensor, and the file that holds it."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: int
    """Its number in the manifest's `files`."""


@dataclass(frozen=True, slots=True)
class CheckpointTensor:
    """A whole tensor, and the pieces that make it up."""

    header: Header
    pieces: tuple[StoredPiece, ...]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What a checkpoint holds of a run beside tensors."""

    step: int
    """Steps the weights have seen."""
    begun_at: int
    """Steps they had seen when the run began, with weights from elsewhere."""
    seed: int
    model: str
    plan: str
    world_size: int
    superscaler: str
    torch: str
    position: Any = None
    """What the batches say of where they are, as JSON."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """All of it."""

    run: RunRecord
    files: tuple[FileRecord, ...]
    tensors: Mapping[str, CheckpointTensor]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest and its digest into a folder; both are on the disk when this returns."""
    described = {
        "format": FORMAT,
        "run": asdict(manifest.run),
        "files": [asdict(file) for file in manifest.files],
        "tensors": {name: _describe(tensor) for name, tensor in sorted(manifest.tensors.items())},
    }
    text = json.dumps(described, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    _write(folder / MANIFEST, text)
    _write(folder / DIGEST, _digest(text))
    sync_folder(folder)


def read_manifest(folder: Path) -> Manifest:
    """Read and verify the manifest of a folder; its files must be there, with the sizes it states.

    Raises:
        BuildError: Something is missing, damaged, of another format or no such thing at all.
    """
    if folder.is_symlink():
        raise BuildError(f"{folder} is a link, which may lead anywhere")
    path = folder / MANIFEST
    text, digest = _contents(path), _contents(folder / DIGEST)
    if digest != _digest(text):
        raise BuildError(f"{path} is damaged, or {DIGEST} is: its SHA-256 is another")
    try:
        manifest = _parse(json.loads(text))
    except _FormatError as error:
        raise BuildError(f"{path} {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BuildError(
            f"{path} is no checkpoint as superscaler writes one: {type(error).__name__}: {error}"
        ) from error
    for file in manifest.files:
        with open_plain(folder / file.name) as opened:
            size = os.fstat(opened.fileno()).st_size
        if size != file.num_bytes:
            raise BuildError(
                f"{folder / file.name} has {size} bytes, not the {file.num_bytes} that were written"
            )
    return manifest


class _FormatError(ValueError):
    """The manifest is of another format."""


def _digest(text: bytes) -> bytes:
    return f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n".encode()


def _describe(tensor: CheckpointTensor) -> dict[str, Any]:
    assert isinstance(tensor.header.dtype, torch.dtype)
    return {
        "dtype": DTYPE_NAMES[tensor.header.dtype],
        "shape": tensor.header.shape,
        "pieces": [[piece.file, piece.offsets, piece.sizes] for piece in tensor.pieces],
    }


def _parse(described: Mapping[str, Any]) -> Manifest:
    if described["format"] != FORMAT:
        raise _FormatError(f"has format {described['format']!r}; this superscaler reads format {FORMAT}")
    files = tuple(FileRecord(**entry) for entry in described["files"])
    for file in files:
        _check(_FILE_NAME.fullmatch(file.name), f"a file named {file.name!r}")
        _check(_are_sizes([file.num_bytes, file.piece_bytes]), f"sizes of {file.name}")
    _check(len({file.name for file in files}) == len(files), "one file twice")
    tensors = {name: _parse_tensor(name, entry, len(files)) for name, entry in described["tensors"].items()}
    return Manifest(_parse_run(described["run"]), files, tensors)


def _parse_tensor(name: str, entry: Mapping[str, Any], num_files: int) -> CheckpointTensor:
    shape = tuple(entry["shape"])
    _check(_are_sizes(shape), f"the shape of {name!r}")
    pieces = []
    for file, offsets, sizes in entry["pieces"]:
        _check(_are_sizes([file, *offsets, *sizes]) and file < num_files, f"a piece of {name!r}")
        _check(len(offsets) == len(sizes) == len(shape), f"the dims of a piece of {name!r}")
        box = zip(offsets, sizes, shape, strict=True)
        _check(all(offset + size <= whole for offset, size, whole in box), f"a piece outside of {name!r}")
        pieces.append(StoredPiece(tuple(offsets), tuple(sizes), file))
    are_all = sum(prod(piece.sizes) for piece in pieces) == prod(shape) and _are_apart(pieces)
    _check(are_all, f"pieces that do not make up {name!r}")
    return CheckpointTensor(Header(shape, DTYPES[entry["dtype"]]), tuple(pieces))


def _are_apart(pieces: Sequence[StoredPiece]) -> bool:
    """Whether no two boxes overlap: a sweep along the dim in which they begin at most places."""
    if len(pieces) < 2:
        return True
    num_dims = len(pieces[0].offsets)
    dim = max(range(num_dims), key=lambda d: len({p.offsets[d] for p in pieces}), default=None)
    if dim is None:
        return False
    open_ones: list[StoredPiece] = []
    for piece in sorted(pieces, key=lambda piece: piece.offsets[dim]):
        open_ones = [
            other for other in open_ones if other.offsets[dim] + other.sizes[dim] > piece.offsets[dim]
        ]
        if any(_overlap(piece, other) for other in open_ones):
            return False
        open_ones.append(piece)
    return True


def _overlap(a: StoredPiece, b: StoredPiece) -> bool:
    dims = zip(a.offsets, a.sizes, b.offsets, b.sizes, strict=True)
    return all(start < other + length and other < start + size for start, size, other, length in dims)


def _parse_run(entry: Mapping[str, Any]) -> RunRecord:
    run = RunRecord(**entry)
    _check(_are_sizes([run.step, run.begun_at, run.world_size]) and run.begun_at <= run.step, "its steps")
    _check(type(run.seed) is int, "its seed")
    texts = (run.model, run.plan, run.superscaler, run.torch)
    _check(all(isinstance(text, str) for text in texts), "what it says of the run")
    return run


def _are_sizes(values: Sequence[Any]) -> bool:
    return all(type(value) is int and 0 <= value < _LARGEST for value in values)


def _check(condition: object, what: str) -> None:
    if not condition:
        raise ValueError(f"{what} cannot be")


def _contents(path: Path) -> bytes:
    with open_plain(path) as file:
        text = file.read(_LONGEST + 1)
    if len(text) > _LONGEST:
        raise BuildError(f"{path} is larger than {_LONGEST} bytes, as none is that superscaler wrote")
    return text


def _write(path: Path, text: bytes) -> None:
    with path.open("xb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
