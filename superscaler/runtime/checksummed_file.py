"""A .safetensors file of pieces of tensors that knows its own checksums: read in part, and verified where it is read.

Behind the pieces lies one tensor more, the CRC-32 of every `BLOCK` bytes of them. Whoever refers to the file keeps its
size and the SHA-256 of the rest (header and checksums), so that a reader verifies that first, and then the blocks it
reads. Nothing of it is ever executed, unpickled or taken for a size before it is verified.
"""

import ctypes
import hashlib
import json
import os
import stat
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from superscaler.errors import BuildError
from superscaler.runtime.safetensors_files import DTYPES, Header, write_stream

BLOCK = 256 * 1024
"""Bytes under one checksum."""
CHECKSUMS = "checksums"
"""The tensor that holds them: int64, one per block."""
_STRIP = 16 * 2**20
"""Bytes of a piece that are in memory at a time beside what they are copied into."""
_CHECKSUM_BYTES = 8
_LONGEST_HEADER = 100_000_000
"""Bytes; as in the safetensors library."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What is known of a file from outside."""

    name: str
    num_bytes: int
    """Of all of it."""
    piece_bytes: int
    """Of the pieces."""
    sha256: str
    """Of its header and checksums."""


def write_checksummed(path: Path, pieces: Mapping[str, Header], read: Callable[[str], Tensor]) -> FileRecord:
    """Write a file of pieces one after another; it is on the disk, under its name, when this returns.

    Args:
        path: The file.
        pieces: What will be written, by name.
        read: Gives each piece, on the CPU and contiguous, when its turn comes.
    """
    checksums = _Checksums()
    piece_bytes = sum(map(_num_bytes, pieces.values()))
    last = Header((_num_blocks(piece_bytes),), torch.int64)

    def next_tensor(name: str) -> Tensor:
        if name == CHECKSUMS:
            return torch.tensor(checksums.finish(), dtype=torch.int64)
        piece = read(name)
        checksums.add(piece)
        return piece

    assert CHECKSUMS not in pieces
    write_stream(path, {**pieces, CHECKSUMS: last}, next_tensor, {})
    num_bytes = path.stat().st_size
    header, table = _frame(path, num_bytes, piece_bytes)
    return FileRecord(path.name, num_bytes, piece_bytes, hashlib.sha256(header + table).hexdigest())


class ChecksummedFile:
    """A file `write_checksummed` wrote, open for reading.

    Raises:
        BuildError: It is missing, a link, of another size, or not what `record` says.
    """

    def __init__(self, folder: Path, record: FileRecord) -> None:
        self.path = folder / record.name
        self._file = open_plain(self.path)
        try:
            self._open(record)
        except BaseException:
            self._file.close()
            raise

    def _open(self, record: FileRecord) -> None:
        size = os.fstat(self._file.fileno()).st_size
        if size != record.num_bytes:
            raise BuildError(f"{self.path} has {size} bytes, not the {record.num_bytes} that were written")
        header, table = _frame(self.path, size, record.piece_bytes, self._file.fileno())
        if hashlib.sha256(header + table).hexdigest() != record.sha256:
            raise BuildError(f"{self.path} is damaged: its header or its checksums are not those written")
        self._start = len(header)
        self._piece_bytes = record.piece_bytes
        self._checksums = memoryview(table).cast("q")
        self.pieces = _pieces(self.path, header[8:], record.piece_bytes)

    def __enter__(self) -> "ChecksummedFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read_into(self, name: str, starts: Sequence[int], target: Tensor) -> None:
        """Copy a box of the piece `name` into `target`: that which begins at `starts` and is shaped like it.

        Raises:
            BuildError: There is no such piece or box in the file, or it is damaged there.
        """
        header, offset = self.pieces.get(name, (None, 0))
        if (
            header is None
            or header.dtype != target.dtype
            or not _is_inside(header.shape, starts, target.shape)
        ):
            raise BuildError(f"{self.path} does not hold {list(target.shape)} elements of {name!r}")
        if target.numel():
            self._copy(header.shape, offset, starts, target)

    def _copy(self, shape: Sequence[int], offset: int, starts: Sequence[int], target: Tensor) -> None:
        """Copy the stretch from the box's first element to its last at once if it is short, else by halves."""
        strides = [prod(shape[dim + 1 :]) for dim in range(len(shape))]
        first = sum(start * stride for start, stride in zip(starts, strides, strict=True))
        count = 1 + sum((size - 1) * stride for size, stride in zip(target.shape, strides, strict=True))
        width = target.dtype.itemsize
        dim = next((dim for dim, size in enumerate(target.shape) if size > 1), None)
        if dim is None or count * width <= _STRIP:
            content = self._verified(offset + first * width, count * width)
            flat = torch.frombuffer(content, dtype=target.dtype)
            target.copy_(flat.as_strided(target.shape, strides))
            return
        half = target.shape[dim] // 2
        later = [start + half * (i == dim) for i, start in enumerate(starts)]
        self._copy(shape, offset, starts, target.narrow(dim, 0, half))
        self._copy(shape, offset, later, target.narrow(dim, half, target.shape[dim] - half))

    def _verified(self, start: int, length: int) -> bytearray:
        """Some bytes of the pieces, once the blocks they lie in have turned out to be what was written."""
        first, last = start // BLOCK, (start + length - 1) // BLOCK
        begin, end = first * BLOCK, min((last + 1) * BLOCK, self._piece_bytes)
        content = memoryview(_read_exactly(self._file.fileno(), self._start + begin, end - begin, self.path))
        for number in range(first, last + 1):
            block = content[number * BLOCK - begin : (number + 1) * BLOCK - begin]
            if zlib.crc32(block) != self._checksums[number]:
                where = self._start + number * BLOCK
                raise BuildError(f"{self.path} is damaged between bytes {where} and {where + len(block)}")
        return bytearray(content[start - begin : start - begin + length])


def open_plain(path: Path) -> Any:
    """Open a file for reading that is one, and no link, pipe or device.

    Raises:
        BuildError: It is something else, is missing, or cannot be read.
    """
    try:
        # without O_NONBLOCK, opening a pipe would wait for somebody to write into it
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise BuildError(f"{path} is missing") from error
    except OSError as error:
        what = "is a link, which may lead anywhere" if path.is_symlink() else f"cannot be read: {error}"
        raise BuildError(f"{path} {what}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise BuildError(f"{path} is no file")
    return os.fdopen(handle, "rb")


class _Checksums:
    """The CRC-32 of every block of bytes that come in pieces of any size."""

    def __init__(self) -> None:
        self._done: list[int] = []
        self._current, self._room = 0, BLOCK

    def add(self, piece: Tensor) -> None:
        if not piece.numel():
            return
        content = memoryview((ctypes.c_char * piece.nbytes).from_address(piece.data_ptr())).cast("B")
        while len(content):
            part, content = content[: self._room], content[self._room :]
            self._current = zlib.crc32(part, self._current)
            self._room -= len(part)
            if self._room == 0:
                self._done.append(self._current)
                self._current, self._room = 0, BLOCK

    def finish(self) -> list[int]:
        return [*self._done, self._current] if self._room < BLOCK else self._done


def _frame(path: Path, size: int, piece_bytes: int, handle: int | None = None) -> tuple[bytes, bytes]:
    """What lies around the pieces: the header with its length, and the checksums."""
    if handle is None:
        with open_plain(path) as file:
            return _frame(path, size, piece_bytes, file.fileno())
    num_checksum_bytes = _num_blocks(piece_bytes) * _CHECKSUM_BYTES
    header_bytes = size - piece_bytes - num_checksum_bytes
    if not 8 <= header_bytes <= _LONGEST_HEADER:
        raise BuildError(f"{path} has {size} bytes, which cannot be with {piece_bytes} bytes of tensors")
    header = _read_exactly(handle, 0, header_bytes, path)
    return bytes(header), bytes(_read_exactly(handle, size - num_checksum_bytes, num_checksum_bytes, path))


def _read_exactly(handle: int, start: int, length: int, path: Path) -> bytearray:
    content = bytearray(length)
    view, done = memoryview(content), 0
    while done < length:
        count = os.preadv(handle, [view[done:]], start + done)
        if count == 0:
            raise BuildError(f"{path} ends at byte {start + done}, before all of it was read")
        done += count
    return content


def _pieces(path: Path, text: bytes, piece_bytes: int) -> dict[str, tuple[Header, int]]:
    """Name -> what the header says of a piece, and where it begins."""
    try:
        entries = json.loads(text)
        del entries["__metadata__"], entries[CHECKSUMS]
        found = {}
        for name, entry in entries.items():
            header = Header(tuple(entry["shape"]), DTYPES[entry["dtype"]])
            start, stop = entry["data_offsets"]
            is_number = type(start) is int and type(stop) is int
            if not is_number or not 0 <= start <= stop <= piece_bytes or stop - start != _num_bytes(header):
                raise ValueError(f"{name!r} cannot lie at {start} to {stop}")
            found[name] = header, start
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BuildError(f"{path} has no header as superscaler writes it: {error}") from error
    return found


def _is_inside(shape: Sequence[int], starts: Sequence[int], sizes: Sequence[int]) -> bool:
    boxes = zip(shape, starts, sizes, strict=False)
    return len(shape) == len(starts) == len(sizes) and all(a >= 0 and a + n <= whole for whole, a, n in boxes)


def _num_bytes(header: Header) -> int:
    assert isinstance(header.dtype, torch.dtype)
    return prod(header.shape) * header.dtype.itemsize


def _num_blocks(piece_bytes: int) -> int:
    return -(-piece_bytes // BLOCK)
