"""Parts of tensors are read exactly, from one file or several; what is streamed out reads back."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from superscaler.errors import BuildError
from superscaler.runtime.safetensors_files import Header, TensorFiles, write_stream
from superscaler.runtime.stored_tensor import dim_runs


def test_parts_are_those_of_the_whole(tmp_path):
    whole = torch.randn(24, 7, 10)
    save_file({"x": whole, "scale": torch.tensor(3.0)}, tmp_path / "a.safetensors")
    files = TensorFiles(tmp_path / "a.safetensors")
    assert files.headers["x"] == Header((24, 7, 10), torch.float32)
    for intervals in (((0, 3), (0, 4), (0, 2)), ((0, 3), (1, 3), (0, 2)), ((1, 2), (1, 3), (0, 1))):
        rows = dim_runs((3, 4, 2), intervals)
        columns = dim_runs((5, 2), ((1, 4), (1, 2)))
        expected = whole[[i for a, b in rows for i in range(a, b)]][
            ..., [i for a, b in columns for i in range(a, b)]
        ]
        assert torch.equal(files.read("x", [rows, [(2, 6)], columns]), expected[:, 2:6])
    many = [(i, i + 1) for i in range(0, 24, 1)]
    assert torch.equal(files.read("x", [many, [(0, 7)], [(0, 10)]]), whole)
    assert torch.equal(
        files.read("x", [[(20, 24), (0, 3)], [(0, 7)], [(0, 10)]]), torch.cat([whole[20:], whole[:3]])
    )
    assert files.read("x", [[], [(0, 7)], [(0, 10)]]).shape == (0, 7, 10)
    assert files.read("scale", []).item() == 3.0


@pytest.mark.parametrize("runs", [[(0, 8)], [(8, 16)], [(4, 6), (20, 24)]])
def test_a_part_keeps_no_memory_of_the_rest(tmp_path, runs):
    save_file({"x": torch.randn(24, 5)}, tmp_path / "a.safetensors")
    part = TensorFiles(tmp_path / "a.safetensors").read("x", [runs, [(0, 5)]])
    assert part.untyped_storage().nbytes() == part.nbytes


def test_a_folder_with_an_index_is_one_set_of_tensors(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "1.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "2.safetensors")
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    files = TensorFiles(tmp_path)
    assert set(files.headers) == {"a", "b"}
    assert torch.equal(files.read("b", [[(1, 3)]]), torch.zeros(2))


@pytest.mark.parametrize("content", [None, b"", b"not safetensors at all"])
def test_what_holds_no_tensors_is_refused(tmp_path, content):
    path = tmp_path / "x.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BuildError, match=r"x\.safetensors"):
        TensorFiles(path)


def test_a_stream_reads_back(tmp_path):
    tensors = {
        "a": torch.randn(3, 4).t(), "b": torch.randn(5).bfloat16(), "c": torch.tensor(7),
        "d": torch.empty(0, 2), "e": torch.tensor([True, False, True]),
    }  # fmt: skip
    headers = {name: Header(tuple(x.shape), x.dtype) for name, x in tensors.items()}
    write_stream(tmp_path / "x.safetensors", headers, tensors.__getitem__, {"step": "4"})
    loaded = load_file(tmp_path / "x.safetensors")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], x) for name, x in tensors.items())
    assert TensorFiles(tmp_path / "x.safetensors").metadata == {"step": "4"}


@pytest.mark.parametrize("text", ["{", "[]", '{"metadata": {}}'])
def test_a_damaged_index_is_named(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(BuildError, match=r"model\.safetensors\.index\.json is no index of tensors"):
        TensorFiles(tmp_path)
