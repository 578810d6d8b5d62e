"""Whatever is wrong with a checkpoint is said, with the file and the remedy, and nothing in it ever runs."""

import hashlib
import json
import os
import pickle
import shutil
from contextlib import suppress

import pytest
import torch
import torch.distributed as dist

from superscaler.errors import BuildError
from superscaler.runtime.build import read_build
from superscaler.runtime.training_checkpoint import Checkpoints
from superscaler.runtime.training_run import NEWEST, TrainingRun
from superscaler.runtime.weights import load_weights
from tests.runtime.test_training_checkpoint import DATA
from tests.runtime.tiny_build import write_build

CPU = torch.device("cpu")
FILES = ("checkpoint.json", "checkpoint.json.sha256", "rank00000.safetensors")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A build, and the folder of its checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("saved")
    build = read_build(write_build(folder / "build", 1))
    start = load_weights(None, build, 0, CPU)
    run = TrainingRun(start.weights, start.states, 0, 0, seed=0)
    checkpoints = Checkpoints(folder / "run", build, 0, CPU)
    for _ in range(2):
        run.step += 1
        run.losses.append(0.5)
        checkpoints.save(run, DATA)
    checkpoints.close()
    yield build, folder / "run"
    dist.destroy_process_group()


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to damage."""
    return shutil.copytree(saved[1], tmp_path / "run")


@pytest.fixture
def resume(saved, folder):
    """Resumes from the copy."""
    return lambda step=NEWEST: Checkpoints(folder, saved[0], 0, CPU).start(step)


def newest(folder):
    return folder / "step-00000002"


def error_of(resume):
    with pytest.raises(BuildError) as caught:
        resume()
    return str(caught.value)


def assert_names(error, file):
    assert "the checkpoint of step 2 is broken: " in error
    assert file in error
    assert "remedy: go on from step 1, the newest before it that has all its files: --resume 1" in error


@pytest.mark.parametrize("file", FILES)
def test_no_byte_can_change_unnoticed(folder, resume, file):
    path = newest(folder) / file
    content = path.read_bytes()
    assert resume().step == 2
    for place in range(0, len(content), 3):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        assert_names(error_of(resume), "checkpoint.json" if file.startswith("checkpoint") else file)
    path.write_bytes(content)
    assert resume().step == 2


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    "change", [lambda b: b[:-1], lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b + b"\0"]
)
def test_files_cut_short_or_grown_are_named(folder, resume, file, change):
    path = newest(folder) / file
    path.write_bytes(change(path.read_bytes()))
    assert_names(error_of(resume), "checkpoint.json" if file.startswith("checkpoint") else file)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named_and_the_one_before_can_be_chosen(folder, resume, file):
    (newest(folder) / file).unlink()
    error = error_of(resume)
    assert_names(error, file)
    assert f"{file} is missing" in error
    assert resume(1).step == 1


def test_where_none_before_is_whole_the_error_says_so(folder, resume):
    (newest(folder) / FILES[0]).unlink()
    (folder / "step-00000001" / FILES[2]).unlink()
    assert "there is none before it with all its files" in error_of(resume)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_in_place_of_any_file_is_never_loaded(folder, resume, tmp_path):
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    with suppress(FileExistsError):
        pickle.loads(bomb)
    assert (tmp_path / "exploded").exists()
    (tmp_path / "exploded").rmdir()
    for file in FILES:
        path = newest(folder) / file
        content = path.read_bytes()
        path.write_bytes(bomb + b"\0" * max(0, len(content) - len(bomb)))
        assert file.removesuffix(".sha256") in error_of(resume)
        path.write_bytes(content)
    for stranger in (".metadata", "data.pkl", "rank00001.safetensors"):
        (newest(folder) / stranger).write_bytes(bomb)
    assert resume().step == 2
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("file", FILES)
def test_links_lead_nowhere(folder, resume, tmp_path, file):
    path = newest(folder) / file
    shutil.move(path, tmp_path / file)
    path.symlink_to(tmp_path / file)
    assert f"{file} is a link" in error_of(resume)


def test_a_link_is_no_checkpoint(folder, resume, tmp_path):
    shutil.move(newest(folder), tmp_path / "elsewhere")
    newest(folder).symlink_to(tmp_path / "elsewhere")
    assert "step-00000002 is a link" in error_of(resume)


@pytest.mark.parametrize("file", FILES)
def test_pipes_and_folders_in_place_of_files_do_not_hang(folder, resume, file):
    path = newest(folder) / file
    path.unlink()
    os.mkfifo(path)
    assert f"{file} is no file" in error_of(resume)
    path.unlink()
    path.mkdir()
    assert f"{file} is no file" in error_of(resume)


def rewrite(folder, change):
    """Change the manifest as somebody would who knows how it is protected."""
    path = newest(folder) / "checkpoint.json"
    described = json.loads(path.read_text())
    changed = change(described)
    text = changed if isinstance(changed, bytes) else json.dumps(described).encode()
    path.write_bytes(text)
    digest = f"{hashlib.sha256(text).hexdigest()}  checkpoint.json\n"
    (newest(folder) / "checkpoint.json.sha256").write_text(digest)


def put(*path_and_value):
    """A change of one entry."""
    *path, last, value = path_and_value

    def change(described):
        for key in path:
            described = described[key]
        described[last] = value

    return change


HUGE = 2**61
CHANGES = {
    "a file outside": put("files", 0, "name", "../step-00000001/rank00000.safetensors"),
    "an absolute file": put("files", 0, "name", "/etc/passwd"),
    "a file that is no name": put("files", 0, "name", ["rank00000.safetensors"]),
    "a huge file": put("files", 0, "num_bytes", HUGE),
    "a file of negative size": put("files", 0, "piece_bytes", -1),
    "more in a file than it has": put("files", 0, "piece_bytes", HUGE),
    "less in a file than it has": put("files", 0, "piece_bytes", 0),
    "one file twice": lambda d: d["files"].append(d["files"][0]),
    "no such file": put("tensors", "w", "pieces", 0, 0, 7),
    "a huge tensor": lambda d: d["tensors"]["w"].update(shape=[HUGE, 6], pieces=[[0, [0, 0], [HUGE, 6]]]),
    "a negative shape": lambda d: d["tensors"]["w"].update(shape=[-4, -6], pieces=[[0, [0, 0], [-4, -6]]]),
    "a piece outside": put("tensors", "w", "pieces", 0, 1, [1, 0]),
    "a piece elsewhere": lambda d: d["tensors"]["w"].update(
        pieces=[[0, [0, 0], [2, 6]], [0, [2, 0], [2, 6]]]
    ),
    "a piece twice": lambda d: d["tensors"]["w"].update(pieces=[[0, [0, 0], [2, 6]], [0, [0, 0], [2, 6]]]),
    "a piece missing": put("tensors", "w", "pieces", []),
    "another number of dims": put("tensors", "w", "pieces", 0, 2, [24]),
    "a number that is none": put("tensors", "w", "shape", [4, True]),
    "an unknown dtype": put("tensors", "w", "dtype", "pickle"),
    "another dtype": put("tensors", "w", "dtype", "I64"),
    "losses of another shape": lambda d: d["tensors"]["superscaler/losses"].update(
        shape=[HUGE], pieces=[[0, [0], [HUGE]]]
    ),
    "steps that are text": put("run", "step", "2"),
    "another step": put("run", "step", 9),
    "no run": lambda d: d.pop("run"),
    "an unknown entry": put("run", "extra", 1),
    "another format": put("format", 99),
    "deep nesting": lambda d: b"[" * 100_000,
    "a list": lambda d: b"[]",
    "a long number": lambda d: b'{"format":' + b"9" * 10_000 + b"}",
    "text that is no JSON": lambda d: b"\xff\xfe",
    "nothing": lambda d: b"",
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_manifest_made_to_harm_is_refused(folder, resume, name):
    rewrite(folder, CHANGES[name])
    error = error_of(resume)
    assert "step-00000002" in error
    assert "remedy: " in error


def headers(folder, change):
    """Change the header of the file of tensors, and all digests with it."""
    path = newest(folder) / "rank00000.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    text = change(header) or json.dumps(header).encode()
    frame, rest = len(text).to_bytes(8, "little") + text, content[8 + length :]
    path.write_bytes(frame + rest)
    record = json.loads((newest(folder) / "checkpoint.json").read_text())["files"][0]
    record["num_bytes"] = len(frame + rest)
    record["sha256"] = hashlib.sha256(frame + rest[record["piece_bytes"] :]).hexdigest()
    rewrite(folder, put("files", 0, record))


@pytest.mark.parametrize(
    "change",
    [
        put("w@0,0", "shape", [2, 3]),
        put("w@0,0", "shape", [-4, -6]),
        put("w@0,0", "data_offsets", [0, 9**9]),
        put("w@0,0", "data_offsets", [-8, 184]),
        put("w@0,0", "data_offsets", [0.0, 192.0]),
        put("w@0,0", "dtype", "F99"),
        put("w@0,0", "shape", 4),
        lambda header: header.pop("w@0,0") and None,
        lambda header: header.pop("checksums") and None,
        lambda header: b"[" * 100_000,
        lambda header: b"no json",
    ],
)
def test_a_file_made_to_harm_is_refused(folder, resume, change):
    headers(folder, change)
    assert_names(error_of(resume), "rank00000.safetensors")


def test_a_step_that_is_not_there_is_answered_with_those_that_are(folder, resume):
    with pytest.raises(
        BuildError, match=r"no checkpoint of step 5(?s:.*)choose one of 1, 2 with --resume STEP"
    ):
        resume(5)
    (folder / "step-3").mkdir()
    (folder / "step-00000007.unfinished").mkdir()
    assert resume().step == 2
