"""A signal, to whichever ranks it comes, ends a run after one and the same step, with a checkpoint to go on from."""

import json
import os
import signal

import pytest

from superscaler.runtime.checkpoint_folder import CheckpointFolder
from tests.runtime.started_ranks import (
    LIMIT,
    has_reached,
    pid,
    ranks_alone,
    torchrun,
    wait_until,
    write_slow_build,
)
from tests.runtime.test_launch import train_eagerly

pytestmark = pytest.mark.ranks


def begin(tmp_path, *options):
    folder = write_slow_build(tmp_path / "build", 2)
    run = torchrun(folder, 2, "--steps", 100_000, "--checkpoint", tmp_path / "run", *options)
    wait_until(has_reached(folder, 3), run)
    return folder, run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_rank_ends_all_after_one_step_and_the_run_goes_on_from_there(tmp_path, number):
    folder, run = begin(tmp_path)
    os.kill(pid(folder, 1), number)
    assert run.wait(LIMIT) == 0
    (step,) = CheckpointFolder(tmp_path / "run").steps()
    assert f"note: {number.name} ends the run after step {step}\n" in (folder / "out.txt").read_text()
    losses = tmp_path / "losses.json"
    options = ["--resume", "--checkpoint", tmp_path / "run", "--losses", losses]
    assert torchrun(folder, 2, "--steps", step + 2, *options).wait(LIMIT) == 0
    assert json.loads(losses.read_text()) == pytest.approx(train_eagerly(folder, step + 2)[0], rel=1e-12)


def test_a_signal_to_torchrun_reaches_the_ranks(tmp_path):
    folder, run = begin(tmp_path, "--losses", tmp_path / "losses.json")
    run.terminate()
    run.wait(LIMIT)
    (step,) = CheckpointFolder(tmp_path / "run").steps()
    assert f"note: SIGTERM ends the run after step {step}\n" in (folder / "out.txt").read_text()
    assert len(json.loads((tmp_path / "losses.json").read_text())) == step


def test_a_second_signal_ends_a_rank_at_once_whatever_it_waits_for(tmp_path):
    line = "rt.rank == 1 and step == 2 and __import__('time').sleep(600)"
    folder = write_slow_build(tmp_path, 2, line)
    ranks = ranks_alone(folder, 2, "--steps", 5, "--timeout", 300)
    try:
        wait_until(has_reached(folder, 1, "out0.txt"), ranks[0])
        for process in ranks:  # one waits in a collective, which runs no Python, and one sleeps
            process.terminate()
            with pytest.raises(Exception, match="timed out"):
                process.wait(2)
            process.send_signal(signal.SIGINT)
            assert process.wait(LIMIT) == 128 + signal.SIGINT
    finally:
        for process in ranks:
            process.kill()
            process.wait()
