"""``superscaler launch``: what is written for whom, and what is refused."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from superscaler.cli import main
from tests.runtime.tiny_build import write_build


@pytest.fixture
def build(tmp_path):
    folder = write_build(tmp_path / "gpt", 4)
    plan = json.loads((folder / "plan.json").read_text())
    plan["cluster"] = {"name": "mine", "nodes": [[2, 2]]}
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder


def printed(capsys, *arguments):
    code = main([*map(str, arguments)])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def test_commands_are_for_the_hosts_named(capsys, build):
    text = printed(
        capsys, "launch", build, "--hosts", "alpha,beta", "--interface", "eth1", "--", "--steps", "7"
    )
    first, command, second, other = text.splitlines()
    assert (first, second) == ("# on alpha", "# on beta")
    for line in (command, other):
        assert line.startswith(
            "GLOO_SOCKET_IFNAME=eth1 NCCL_SOCKET_IFNAME=eth1 torchrun --nnodes 2 --nproc-per-node 2 "
        )
        assert line.endswith(f" {build / 'train.py'} --steps 7")


def test_a_run_that_keeps_checkpoints_goes_on_from_them(capsys, build):
    text = printed(
        capsys, "launch", build, "--as", "slurm", "--checkpoint", "/shared/run", "--cpu", "--max-restarts", 3
    )
    assert "--checkpoint /shared/run --resume --backend gloo" in text
    assert "--max-restarts 3" in text
    assert "--gpus" not in text
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


def test_a_run_may_go_on_with_fewer_machines(capsys, build):
    options = ["--min-nodes", 1, "--max-restarts", 3, "--checkpoint", "/shared/run"]
    text = printed(capsys, "launch", build, *options)
    for line in text.splitlines()[1::2]:
        assert line.startswith(
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --nnodes 1:2 --nproc-per-node 2 "
        )
        assert " --rdzv-backend c10d " in line
        assert line.endswith(" --checkpoint /shared/run --resume --elastic 2:4")


def test_a_manifest_is_written_for_the_place_pods_find_the_build_at(capsys, build, tmp_path):
    file = tmp_path / "gpt.yaml"
    options = [
        "--as",
        "kubernetes",
        "--image",
        "mine:1",
        "--claim",
        "work",
        "--build",
        "/work/gpt/",
        "-o",
        file,
    ]
    assert printed(capsys, "launch", build, *options) == f"{file}: start it with kubectl apply -f {file}\n"
    _, job = yaml.safe_load_all(Path(file).read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"][2].endswith(" /work/gpt/train.py")


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--hosts", "a,b,c"], "needs 4 processes; 3 node(s) with 1 each are 3"),
        (["--hosts", "a,b", "--nodes", "4"], "--hosts names 2, --nodes says 4"),
        (["--min-nodes", "1"], "--min-nodes goes on from checkpoints, and none are kept"),
        (["--min-nodes", "1", "--checkpoint", "run"], "no restart is allowed"),
        (["--min-nodes", "3", "--checkpoint", "run", "--max-restarts", "1"], "cannot go on with 3"),
        (["--nodes", "0"], "--nodes 0 is below 1"),
        (["--as", "kubernetes"], "a manifest needs an image"),
        (["--image", "mine:1"], "--image says nothing with --as torchrun"),
        (["--as", "slurm", "--hosts", "a,b"], "--hosts says nothing with --as slurm"),
        (["--env", "NCCL_DEBUG"], "--env 'NCCL_DEBUG' is not KEY=VALUE"),
        (["-o", "no/such/folder/file"], "cannot write no/such/folder/file"),
    ],
)
def test_a_mistake_is_told_with_its_remedy(capsys, build, options, fault):
    assert main(["launch", str(build), *options]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert fault in captured.err
    assert "remedy: " in captured.err


def test_a_folder_that_is_no_build_is_refused(capsys, tmp_path):
    assert main(["launch", str(tmp_path)]) == 1
    assert "is no build folder" in capsys.readouterr().err
