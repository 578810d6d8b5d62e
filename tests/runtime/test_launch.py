"""A hand-written build trains under torchrun as eager PyTorch does, and fails in ways that say what to do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from superscaler.runtime.build import read_build
from superscaler.runtime.weights import load_weights
from tests.runtime.forked_training import free_port
from tests.runtime.tiny_build import write_build

pytestmark = pytest.mark.ranks

ROOT = Path(__file__).parents[2]


def start(folder, *options, ranks=2, **environment):
    command = [sys.executable]
    if ranks:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += [str(folder / "train.py"), "--backend", "gloo", "--threads", "1", *map(str, options)]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, check=False)


def train_eagerly(folder, steps):
    data = load_file(folder / "data.safetensors")
    alone = read_build(write_build(folder.parent / "alone", 1))
    weights = load_weights(None, alone, 0, torch.device("cpu")).weights
    w, b = (weights[name].requires_grad_() for name in "wb")
    optimizer = torch.optim.SGD([w, b], lr=0.1, momentum=0.9)
    losses = []
    for step in range(steps):
        rows = [(step * 8 + i) % 20 for i in range(8)]
        loss = (data["x"][rows] @ w.T + b - data["y"][rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, {"w": w.detach(), "b": b.detach()}


def test_training_equals_eager_also_when_resumed(tmp_path):
    folder = write_build(tmp_path / "build")
    losses, weights = train_eagerly(folder, 6)
    saved = tmp_path / "half.safetensors"
    first = start(folder, "--steps", 4, "--losses", tmp_path / "a.json", "--save", saved, "--save-state")
    assert first.returncode == 0, first.stderr
    assert f"step 4/4  loss {losses[3]:.4f}  " in first.stdout
    assert first.stdout.count("step 1/4") == 1
    options = ["--weights", saved, "--losses", tmp_path / "b.json", "--save", tmp_path / "out.safetensors"]
    second = start(folder, "--steps", 2, "--log-every", 2, *options)
    assert second.returncode == 0, second.stderr
    assert "step 1/2" not in second.stdout
    result = json.loads((tmp_path / "a.json").read_text()) + json.loads((tmp_path / "b.json").read_text())
    assert result == pytest.approx(losses, rel=1e-12)
    for name, x in load_file(tmp_path / "out.safetensors").items():
        torch.testing.assert_close(x, weights[name], rtol=1e-12, atol=1e-12)


def test_one_process_needs_no_torchrun(tmp_path):
    folder = write_build(tmp_path / "build", 1)
    result = start(folder, "--steps", 3, "--losses", tmp_path / "a.json", ranks=0)
    assert result.returncode == 0, result.stderr
    losses, _ = train_eagerly(folder, 3)
    assert json.loads((tmp_path / "a.json").read_text()) == pytest.approx(losses, rel=1e-12)


def test_the_wrong_number_of_processes_names_the_command(tmp_path):
    result = start(write_build(tmp_path), ranks=0)
    assert result.returncode == 1
    assert "needs 2 processes, but 1 was started" in result.stderr
    assert "torchrun --nproc-per-node 2 " in result.stderr
    assert "Traceback" not in result.stderr


def test_a_killed_rank_ends_the_others_with_an_error(tmp_path):
    result = start(write_build(tmp_path), "--steps", 50, "--timeout", 20, DIE_AT="3")
    assert result.returncode != 0
    assert "step 2/50" in result.stdout
    assert "step 3/50" not in result.stdout


def test_the_rank_left_behind_says_what_failed_and_where(tmp_path):
    write_build(tmp_path)
    command = [
        sys.executable,
        str(tmp_path / "train.py"),
        "--backend",
        "gloo",
        "--threads",
        "1",
        "--timeout",
        "20",
    ]
    base = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    ranks = [
        subprocess.Popen(
            command,
            env={**base, "RANK": str(rank), "WORLD_SIZE": "2", "DIE_AT": "3"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]  # no torchrun, which would end the survivor itself
    errors = [process.communicate(timeout=200)[1] for process in ranks]
    assert ranks[1].returncode == -9
    assert ranks[0].returncode == 1
    assert (
        "superscaler: rank 0: CommunicationError: all_gather over dp (ranks 0,1) failed on rank 0"
        in errors[0]
    )
    assert "stage0.py:" in errors[0]


def test_an_edited_stage_runs_on_request_only(tmp_path):
    folder = write_build(tmp_path, 1)
    with (folder / "stage0.py").open("a") as file:
        file.write("# edited\n")
    refused = start(folder, "--steps", 1, ranks=0)
    assert refused.returncode == 1
    assert "--allow-edited" in refused.stderr
    assert start(folder, "--steps", 1, "--allow-edited", ranks=0).returncode == 0


def test_ranks_with_different_builds_refuse_to_start(tmp_path):
    folders = [write_build(tmp_path / "a"), write_build(tmp_path / "b")]
    with (folders[1] / "stage0.py").open("a") as file:
        file.write("# edited\n")
    base = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    options = ["--backend", "gloo", "--allow-edited", "--timeout", "10"]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(folder / "train.py"), *options],
            env={**base, "RANK": str(rank), "WORLD_SIZE": "2"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, folder in enumerate(folders)
    ]
    errors = [process.communicate(timeout=200)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [1, 1]
    assert "copy the same build folder to every machine" in errors[1]


def test_help_explains_every_option(tmp_path):
    result = start(write_build(tmp_path), "--help", ranks=0)
    assert result.returncode == 0
    for option in (
        "--steps",
        "--data",
        "--weights",
        "--save-state",
        "--timeout",
        "--allow-edited",
        "--resume",
        "--keep",
    ):
        assert option in result.stdout
