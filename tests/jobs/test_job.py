"""How the processes of a build are shared out over machines."""

import json

import pytest

from superscaler.errors import BuildError
from superscaler.jobs.job import job_of
from superscaler.runtime.build import read_build
from tests.runtime.tiny_build import write_build


def build(folder, world_size, nodes):
    write_build(folder, world_size)
    plan = json.loads((folder / "plan.json").read_text())
    if nodes:
        plan["cluster"] = {"name": "mine", "nodes": nodes}
    (folder / "plan.json").write_text(json.dumps(plan))
    return read_build(folder)


@pytest.mark.parametrize(
    ("world_size", "cluster", "said", "shared_out"),
    [
        (4, [[2, 2]], {}, (2, 2)),
        (2, [[1, 8]], {}, (1, 2)),
        (4, [[1, 2], [5, 2]], {}, (2, 2)),
        (4, [[2, 2], [1, 16]], {}, (2, 2)),
        (4, [[2, 2]], {"nodes": 4}, (4, 1)),
        (4, [[2, 2]], {"processes": 4}, (1, 4)),
        (4, None, {"nodes": 2}, (2, 2)),
    ],
)
def test_machines_follow_from_the_cluster_and_from_what_is_said(
    world_size, cluster, said, shared_out, tmp_path
):
    job = job_of(build(tmp_path / "gpt", world_size, cluster), **said)
    assert (job.nodes, job.processes) == shared_out
    assert job.name == "gpt"
    assert job.script == str(tmp_path / "gpt" / "train.py")


@pytest.mark.parametrize(
    ("cluster", "said", "fault"),
    [
        ([[2, 2]], {"nodes": 3}, r"needs 4 processes; 3 node\(s\) with 1 each are 3"),
        ([[1, 3], [1, 1]], {}, "has unequal nodes"),
        (None, {}, "is not told by the build"),
        ([[1, 3]], {"nodes": 2, "processes": 1}, "are 2"),
    ],
)
def test_what_does_not_add_up_is_refused(cluster, said, fault, tmp_path):
    with pytest.raises(BuildError, match=fault) as error:
        job_of(build(tmp_path, 4, cluster), **said)
    assert "--processes-per-node" in str(error.value)


@pytest.mark.parametrize(
    ("folder", "name"), [("GPT_3.b", "gpt-3-b"), ("175b", "train-175b"), ("--", "train")]
)
def test_a_name_is_one_a_host_may_have(folder, name, tmp_path):
    assert job_of(build(tmp_path / folder, 1, [[1, 1]])).name == name
