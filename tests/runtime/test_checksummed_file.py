"""A box of a piece is read as it was written, whatever the strips, and no more is read than it lies in."""

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from superscaler.errors import BuildError
from superscaler.runtime import checksummed_file
from superscaler.runtime.checksummed_file import BLOCK, ChecksummedFile, write_checksummed
from superscaler.runtime.safetensors_files import Header

DTYPES = (torch.float64, torch.bfloat16, torch.int8, torch.bool)


def write(path, pieces):
    headers = {name: Header(tuple(piece.shape), piece.dtype) for name, piece in pieces.items()}
    return write_checksummed(path, headers, pieces.__getitem__)


def make(shape, dtype=torch.float64):
    values = torch.arange(torch.Size(shape).numel()).view(shape)
    return values.to(dtype) if dtype != torch.int8 else (values % 100).to(dtype)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """Pieces over many blocks, none of which ends where a piece does."""
    found = {f"{dtype}": make((7, 50, 301), dtype) for dtype in DTYPES}
    found |= {"scalar": torch.tensor(3.5), "empty": torch.empty(0, 4), "row": make((100_001,))}
    path = tmp_path_factory.mktemp("file") / "rank00000.safetensors"
    return path, found, write(path, found)


def test_the_file_is_one_of_safetensors(pieces):
    path, found, record = pieces
    loaded = load_file(path)
    checksums = loaded.pop("checksums")
    assert len(checksums) == -(-record.piece_bytes // BLOCK)
    assert loaded.keys() == found.keys()
    assert all(torch.equal(loaded[name], piece) for name, piece in found.items())
    assert record.num_bytes == path.stat().st_size


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_box_is_read_in_strips_of_any_size(pieces, data):
    path, found, record = pieces
    name = data.draw(st.sampled_from(list(found)))
    bounds = [sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in found[name].shape]
    wanted = found[name][tuple(slice(start, stop) for start, stop in bounds)]
    target = torch.zeros_like(wanted)
    with pytest.MonkeyPatch.context() as patch, ChecksummedFile(path.parent, record) as file:
        patch.setattr(checksummed_file, "_STRIP", data.draw(st.sampled_from([64, 5_000, 10**9])))
        file.read_into(name, [start for start, _ in bounds], target)
    assert torch.equal(target, wanted)


def test_a_box_that_is_not_there_is_refused(pieces):
    path, _, record = pieces
    with ChecksummedFile(path.parent, record) as file:
        for name, starts, target in (
            ("row", [100_000], torch.empty(2, dtype=torch.float64)),
            ("row", [-1], torch.empty(2, dtype=torch.float64)),
            ("row", [0, 0], torch.empty(2, 2, dtype=torch.float64)),
            ("row", [0], torch.empty(2, dtype=torch.float32)),
            ("checksums", [0], torch.empty(2, dtype=torch.int64)),
            ("column", [0], torch.empty(2, dtype=torch.float64)),
        ):
            with pytest.raises(BuildError, match=f"does not hold .* of '{name}'"):
                file.read_into(name, starts, target)


def test_only_the_blocks_a_box_lies_in_are_read_and_verified(tmp_path, monkeypatch):
    piece = make((64, BLOCK // 8))
    record = write(tmp_path / "rank00000.safetensors", {"x": piece})
    content = bytearray((tmp_path / "rank00000.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "rank00000.safetensors").write_bytes(content)
    lengths = []
    real = checksummed_file._read_exactly

    def counted(handle, start, length, path):
        lengths.append(length)
        return real(handle, start, length, path)

    with ChecksummedFile(tmp_path, record) as file:
        monkeypatch.setattr(checksummed_file, "_read_exactly", counted)
        target = torch.empty(8, BLOCK // 8, dtype=torch.float64)
        file.read_into("x", [48, 0], target)
        assert torch.equal(target, piece[48:56])
        assert sum(lengths) == 8 * BLOCK
        with pytest.raises(BuildError, match=r"rank00000.safetensors is damaged between bytes \d+ and \d+"):
            file.read_into("x", [0, 0], torch.empty_like(piece))


def test_what_is_in_memory_at_a_time_is_bounded(tmp_path, monkeypatch):
    """A column of a whole matrix lies all over it; it is read in strips."""
    piece = make((512, 4096))
    record = write(tmp_path / "rank00000.safetensors", {"x": piece})
    largest = []
    real = checksummed_file._read_exactly

    def counted(handle, start, length, path):
        largest.append(length)
        return real(handle, start, length, path)

    with ChecksummedFile(tmp_path, record) as file:
        monkeypatch.setattr(checksummed_file, "_read_exactly", counted)
        monkeypatch.setattr(checksummed_file, "_STRIP", BLOCK)
        target = torch.empty(512, 2, dtype=torch.float64)
        file.read_into("x", [0, 4094], target)
    assert torch.equal(target, piece[:, 4094:])
    assert max(largest) <= 2 * BLOCK


def test_the_record_covers_header_and_checksums(pieces):
    path, _, record = pieces
    content = path.read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    around = content[:length] + content[length + record.piece_bytes :]
    assert record.sha256 == hashlib.sha256(around).hexdigest()
