"""Pieces are written as whole tensors: a file or a folder as save_pretrained writes it, all of it or nothing."""

import json
from dataclasses import replace
from threading import Barrier, Thread

import pytest
import torch
from safetensors.torch import load_file, save_file

from superscaler.errors import BuildError
from superscaler.runtime.build import UnreadTensor, read_build
from superscaler.runtime.checkpoint import check_target, save_weights
from superscaler.runtime.safetensors_files import TensorFiles
from superscaler.runtime.weights import load_weights
from tests.runtime.test_weights import named, whole_weights
from tests.runtime.tiny_build import write_build

CPU = torch.device("cpu")


@pytest.fixture
def build(tmp_path):
    return read_build(write_build(tmp_path / "build"))


def save_from_all(path, build, tensors, **options):
    """Every rank in a thread of its own."""
    barrier = Barrier(len(tensors), timeout=20)
    errors = []

    def save(rank):
        try:
            save_weights(path, build, rank, tensors[rank], barrier.wait, **{"step": 1, **options})
        except Exception as error:
            errors.append(error)
            barrier.abort()

    threads = [Thread(target=save, args=(rank,)) for rank in range(len(tensors))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def pieces(weights):
    return [{"w": weights["w"][2 * rank : 2 * rank + 2], "b": weights["b"]} for rank in range(2)]


def read_folder(folder):
    files = TensorFiles(folder)
    return {
        name: files.read(name, [[(0, size)] for size in files.headers[name].shape]) for name in files.headers
    }


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_pieces_come_back_together(tmp_path, build):
    weights = whole_weights()
    save_from_all(tmp_path / "out.safetensors", build, pieces(weights))
    assert_equal(load_file(tmp_path / "out.safetensors"), weights)
    assert {path.name for path in tmp_path.iterdir()} == {"build", "out.safetensors"}


@pytest.mark.parametrize("name", ["out.safetensors", "out"])
def test_states_are_saved_and_taken_up_with_their_step(tmp_path, build, name):
    tensors = []
    for rank in range(2):
        loaded = load_weights(None, build, rank, CPU)
        loaded.states["w/momentum"] += rank + 1
        tensors.append({**loaded.weights, **loaded.states})
    save_from_all(tmp_path / name, build, tensors, step=5, with_states=True)
    again = load_weights(tmp_path / name, build, 1, CPU)
    assert again.step == 5
    assert (again.states["w/momentum"] == 2).all()
    assert torch.equal(again.weights["w"], tensors[1]["w"])


def test_a_small_folder_is_one_file_without_states(tmp_path, build):
    weights = whole_weights()
    save_from_all(tmp_path / "out", build, pieces(weights))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]
    assert_equal(load_file(tmp_path / "out" / "model.safetensors"), weights)
    assert TensorFiles(tmp_path / "out").metadata == {"format": "pt", "step": "1"}


def test_shards_are_as_full_as_may_be_and_listed(tmp_path, build):
    weights = whole_weights()
    save_from_all(tmp_path / "out", build, pieces(weights), shard_bytes=200)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert index == {"metadata": {"total_size": 224}, "weight_map": {"w": files[0], "b": files[1]}}
    assert_equal(read_folder(tmp_path / "out"), weights)
    save_from_all(tmp_path / "out", build, pieces(weights), shard_bytes=224)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("names", [("w",), ("head",), ("w", "head")])
def test_tied_tensors_keep_the_names_of_the_source(tmp_path, build, names):
    weights, trained = whole_weights(), whole_weights()
    save_file(
        {"b": weights["b"], **{name: weights["w"].clone() for name in names}}, tmp_path / "in.safetensors"
    )
    tied = named(build, w=("w", "head"))
    save_from_all(tmp_path / "out", tied, pieces(trained), source=tmp_path / "in.safetensors")
    assert_equal(read_folder(tmp_path / "out"), {"b": trained["b"], **dict.fromkeys(names, trained["w"])})
    save_from_all(tmp_path / "fresh", tied, pieces(trained))
    assert_equal(read_folder(tmp_path / "fresh"), trained)


def test_what_is_not_persistent_is_not_written(tmp_path, build):
    weights = whole_weights()
    save_from_all(tmp_path / "out", named(build, b=()), pieces(weights))
    assert_equal(read_folder(tmp_path / "out"), {"w": weights["w"]})


def test_what_no_program_reads_passes_through(tmp_path, build):
    weights, trained = whole_weights(), whole_weights()
    spare = UnreadTensor(torch.float64, (3,), ("spare",))
    build = replace(build, unread={"spare": spare})
    save_file({**weights, "spare": torch.ones(3)}, tmp_path / "in.safetensors")
    load_weights(tmp_path / "in.safetensors", build, 0, CPU)
    save_from_all(tmp_path / "out", build, pieces(trained), source=tmp_path / "in.safetensors")
    assert_equal(read_folder(tmp_path / "out"), {**trained, "spare": torch.ones(3, dtype=torch.float64)})


def test_configuration_and_tokenizer_come_along_and_the_dtype_is_stated(tmp_path, build):
    source = tmp_path / "in"
    source.mkdir()
    save_file(whole_weights(), source / "model.safetensors")
    (source / "config.json").write_text(json.dumps({"hidden": 6, "dtype": "bfloat16"}))
    (source / "tokenizer.model").write_bytes(b"\x00\x01")
    (source / "model.safetensors.index.json").write_text("{}")
    (source / "pytorch_model.bin").write_bytes(b"old weights")
    (source / "model.safetensors.index.json").unlink()
    save_from_all(tmp_path / "out", build, pieces(whole_weights()), source=source)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model.safetensors", "config.json", "tokenizer.model"}
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"hidden": 6, "dtype": "float64"}
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == b"\x00\x01"


def test_a_checkpoint_can_be_saved_where_it_came_from(tmp_path, build):
    first, second = whole_weights(), whole_weights()
    save_from_all(tmp_path / "out", build, pieces(first))
    (tmp_path / "out" / "config.json").write_text("{}")
    save_from_all(tmp_path / "out", build, pieces(second), source=tmp_path / "out")
    assert_equal(read_folder(tmp_path / "out"), second)
    assert (tmp_path / "out" / "config.json").read_text() == "{}"
    assert {path.name for path in tmp_path.iterdir()} == {"build", "out"}


def test_a_failure_leaves_the_old_folder_whole(tmp_path, build, monkeypatch):
    first = whole_weights()
    save_from_all(tmp_path / "out", build, pieces(first))

    def no_space(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr("superscaler.runtime.checkpoint._assemble", no_space)
    with pytest.raises(BuildError, match="no space left"):
        save_from_all(tmp_path / "out", build, pieces(whole_weights()))
    monkeypatch.undo()
    assert_equal(read_folder(tmp_path / "out"), first)
    second = whole_weights()
    save_from_all(tmp_path / "out", build, pieces(second))
    assert_equal(read_folder(tmp_path / "out"), second)
    assert {path.name for path in tmp_path.iterdir()} == {"build", "out"}


@pytest.mark.parametrize(
    ("name", "fault"),
    [("notes", "no checkpoint"), ("folder.safetensors", "is a folder"), ("file", "is a file")],
)
def test_what_is_no_checkpoint_is_never_replaced(tmp_path, name, fault):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("dear diary")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "file").write_text("a file")
    with pytest.raises(BuildError, match=fault):
        check_target(tmp_path / name)
    check_target(tmp_path / "new")
