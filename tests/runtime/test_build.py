"""A build folder is read as written, and every way it can be unfit is refused with a remedy."""

import json

import pytest
import torch

from superscaler.errors import BuildError
from superscaler.ir.tensor import Role
from superscaler.runtime.build import read_build
from tests.runtime.tiny_build import make_plan, write_build


def test_a_build_is_read_as_written(tmp_path):
    build = read_build(write_build(tmp_path))
    assert (build.name, build.world_size, build.micro_batches) == ("tiny", 2, 2)
    assert build.inputs["x"] == (torch.float64, (8, 6))
    w = build.program_of(1).tensors["w"]
    assert w.local_shape(1) == (2, 6)
    assert w.region(1).intervals == ((2, 4), (0, 6))
    assert [t.name for t in build.program_of(0).with_role(Role.STATE)] == ["w/momentum", "b/momentum"]


def edit(folder, **changes):
    (folder / "plan.json").write_text(json.dumps({**make_plan(), **changes}))


def damage_nothing_but_plan(folder):
    (folder / "plan.json").write_text("{")


def make_foreign(folder):
    (folder / "plan.json").write_text('{"name": "something else"}')


def remove_stage(folder):
    (folder / "stage0.py").unlink()


def edit_stage(folder):
    with (folder / "stage0.py").open("a") as file:
        file.write("# edited\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "plan.json").unlink(), "no build folder"),
        (damage_nothing_but_plan, "not JSON"),
        (make_foreign, "not a plan of superscaler"),
        (lambda folder: edit(folder, format=1, superscaler="0.9"), r"format 1, written by superscaler 0\.9"),
        (lambda folder: edit(folder, programs=[{"module": "stage0"}]), "damaged: KeyError: 'tensors'"),
        (lambda folder: edit(folder, world_size=3), r"programs use devices \[0, 1\]"),
        (remove_stage, "stage0.py is missing"),
        (edit_stage, r"edited after it was compiled(.|\n)*--allow-edited"),
    ],
)
def test_an_unfit_folder_is_refused(tmp_path, damage, message):
    folder = write_build(tmp_path)
    damage(folder)
    with pytest.raises(BuildError, match=message):
        read_build(folder)


def test_an_edited_stage_is_allowed_on_request_and_changes_the_fingerprint(tmp_path):
    before = read_build(write_build(tmp_path)).fingerprint
    edit_stage(tmp_path)
    assert read_build(tmp_path, allow_edited=True).fingerprint != before


@pytest.mark.parametrize("version", ["2.10.1", "2.14.0", "3.0"])
def test_another_torch_is_refused(tmp_path, monkeypatch, version):
    folder = write_build(tmp_path)
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(BuildError, match=rf"torch {version} is installed(.|\n)*pip install"):
        read_build(folder)
