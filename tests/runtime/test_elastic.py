"""A run outlives its processes: with as many as before from its last checkpoint, or with fewer under another plan."""

import argparse
import json
import os
import re
import signal

import pytest

from superscaler.cli import main
from superscaler.errors import BuildError
from superscaler.runtime.build import read_build
from superscaler.runtime.elastic import add_elastic_options, choose_build
from tests.runtime.forked_training import free_port
from tests.runtime.started_ranks import LIMIT, has_reached, pid, torchrun, wait_until, write_slow_build
from tests.runtime.test_launch import train_eagerly
from tests.runtime.tiny_build import write_build

STEPS = 40
SIZES = {"layers": 1, "width": 16, "heads": 2, "vocab": 64, "seq": 8}


def options(*words, checkpoint="run", resume=-1):
    parser = argparse.ArgumentParser()
    add_elastic_options(parser)
    parsed = parser.parse_args(words)
    parsed.checkpoint, parsed.resume, parsed.allow_edited = checkpoint, resume, False
    return parsed


def run_options(tmp_path):
    losses = ["--losses", tmp_path / "losses.json", "--steps", STEPS]
    return [*losses, "--checkpoint", tmp_path / "run", "--checkpoint-every", 5, "--resume"]


@pytest.mark.ranks
def test_a_killed_rank_comes_back_and_the_losses_are_those_of_a_run_that_never_stopped(tmp_path):
    folder = write_slow_build(tmp_path / "build", 2)
    run = torchrun(folder, 2, *run_options(tmp_path), launcher=("--max-restarts", "3"))
    wait_until(has_reached(folder, 8), run)
    os.kill(pid(folder, 1), signal.SIGKILL)
    assert run.wait(LIMIT) == 0, (folder / "err.txt").read_text()
    assert "note: the run goes on from" in (folder / "out.txt").read_text()
    disturbed = json.loads((tmp_path / "losses.json").read_text())
    assert torchrun(folder, 2, "--steps", STEPS, "--losses", tmp_path / "losses.json").wait(LIMIT) == 0
    assert disturbed == json.loads((tmp_path / "losses.json").read_text())


class Machines:
    """Machines of one rank each, of which one or two are enough."""

    def __init__(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
        self.folder = write_slow_build(tmp_path / "build", 2)
        write_slow_build(self.folder / "elastic" / "1", 1)
        self.losses = tmp_path / "losses.json"
        self._options = ["--losses", self.losses, "--checkpoint", tmp_path / "run", "--resume"]
        self._endpoint = f"127.0.0.1:{free_port()}"

    def start(self, number, *options, last_call):
        meeting = ["--nnodes", "1:2", "--max-restarts", "5", "--rdzv-backend", "c10d", "--rdzv-id", "tiny"]
        meeting += ["--rdzv-endpoint", self._endpoint, "--local-addr", "127.0.0.1", "--rdzv-conf"]
        waits = f"last_call_timeout={last_call},keep_alive_interval=1,keep_alive_max_attempt=3"
        launcher = (*meeting, f"{waits},is_host={int(number == 0)}")
        options = [*self._options, *options, "--elastic", "1:2"]
        return torchrun(self.folder, 1, *options, launcher=launcher, suffix=str(number))

    def text(self, number, name="out"):
        return (self.folder / f"{name}{number}.txt").read_text()

    def assert_right(self, steps):
        losses = json.loads(self.losses.read_text())
        assert losses == pytest.approx(train_eagerly(self.folder, steps)[0], rel=1e-12)


@pytest.mark.ranks
def test_a_machine_that_is_lost_for_good_is_done_without(tmp_path, monkeypatch):
    machines = Machines(tmp_path, monkeypatch)
    options = ["--steps", STEPS, "--checkpoint-every", 5]
    first, second = (machines.start(number, *options, last_call=20) for number in range(2))
    wait_until(lambda: any(has_reached(machines.folder, 8, f"out{number}.txt")() for number in range(2)))
    ranks = [pid(machines.folder, rank) for rank in range(2)]
    (lost,) = [rank for rank in ranks if parent_of(rank) == second.pid]
    second.kill()
    os.kill(lost, signal.SIGKILL)
    assert second.wait() == -signal.SIGKILL
    assert first.wait(LIMIT) == 0, machines.text(0, "err")
    assert "note: the run goes on from" in machines.text(0)
    machines.assert_right(STEPS)


@pytest.mark.ranks
def test_a_machine_that_comes_later_is_taken_in_after_a_checkpoint(tmp_path, monkeypatch):
    machines = Machines(tmp_path, monkeypatch)
    options = ["--steps", 300, "--timeout", 60]
    first = machines.start(0, *options, last_call=1)
    wait_until(has_reached(machines.folder, 8, "out0.txt"), first)
    second = machines.start(1, *options, last_call=1)
    assert [first.wait(LIMIT), second.wait(LIMIT)] == [0, 0], machines.text(0, "err")
    step = int(re.search(r"note: SIGTERM ends the run after step (\d+)", machines.text(0))[1])
    told = machines.text(0) + machines.text(1)
    assert f"note: the run goes on from {tmp_path / 'run' / f'step-{step:08}'}" in told
    machines.assert_right(300)


def parent_of(process):
    with open(f"/proc/{process}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def test_a_build_for_the_devices_that_are_left_is_compiled_as_the_build_was(tmp_path, monkeypatch):
    sizes = [word for key, value in SIZES.items() for word in ("--set", f"{key}={value}")]
    what = ["compile", "models/gpt.py:tiny", "--batch", "12", "--dtype", "float64", *sizes]
    assert main([*what, "--cluster", "local:4", "--plan", "dp=4", "-o", str(tmp_path / "build")]) == 0
    monkeypatch.setenv("WORLD_SIZE", "3")
    chosen = choose_build(tmp_path / "build", options("--elastic", "2:4", "--elastic-plan", "dp={n}"))
    before, after = read_build(tmp_path / "build"), read_build(chosen)
    assert (after.world_size, after.plan) == (3, "dp=3")
    assert (after.inputs, after.name) == (before.inputs, before.name)
    made = chosen.stat().st_mtime_ns
    assert choose_build(tmp_path / "build", options("--elastic", "2:4")).stat().st_mtime_ns == made
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        BuildError, match=r"cannot be compiled for 2 devices:\n(.|\n)*choose another --elastic-plan"
    ):
        choose_build(tmp_path / "build", options("--elastic", "2:4", "--elastic-plan", "dp=5"))


def test_without_the_option_the_number_of_processes_is_the_plans(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert choose_build(tmp_path, options()) == tmp_path


@pytest.mark.parametrize(
    ("number", "environment", "kept", "message"),
    [
        (5, {}, True, "5 processes were started, and --elastic allows 2 to 4"),
        (3, {}, True, "was not made by `superscaler compile`(.|\n)*plan.save"),
        (2, {}, False, "goes on from checkpoints, and none are kept"),
        (2, {"GROUP_WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True"}, True, "STORE=1 for torchrun"),
    ],
)
def test_what_cannot_go_on_says_why(tmp_path, monkeypatch, number, environment, kept, message):
    folder = write_build(tmp_path, 2)
    for name, value in {"WORLD_SIZE": str(number), **environment}.items():
        monkeypatch.setenv(name, value)
    given = options("--elastic", "2:4", checkpoint="run" if kept else None)
    with pytest.raises(BuildError, match=message):
        choose_build(folder, given)


@pytest.mark.parametrize("text", ["3", "4:3", "0:2", "a:b"])
def test_bounds_are_two_numbers_in_order(text, capsys):
    with pytest.raises(SystemExit):
        options("--elastic", text)
    assert "is not MIN:MAX" in capsys.readouterr().err
