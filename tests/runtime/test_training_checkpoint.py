"""A run is saved while it goes on, exactly as it was at that step, and resumes as if it had never stopped."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from superscaler.errors import BuildError
from superscaler.runtime import checkpoint_storage
from superscaler.runtime.build import read_build
from superscaler.runtime.checkpoint_manifest import read_manifest
from superscaler.runtime.training_checkpoint import Checkpoints
from superscaler.runtime.training_run import NEWEST, TrainingRun
from superscaler.runtime.weights import load_weights
from tests.runtime.forked_training import losses, train
from tests.runtime.test_launch import train_eagerly
from tests.runtime.tiny_build import write_build

CPU = torch.device("cpu")


@pytest.fixture
def alone(tmp_path):
    """A build for one device, in this process."""
    yield read_build(write_build(tmp_path / "build", 1))
    if dist.is_initialized():
        dist.destroy_process_group()


class Data:
    """Batches as a run knows them."""

    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


DATA = Data({"step": 0})


def new_run(build):
    start = load_weights(None, build, 0, CPU)
    return TrainingRun(start.weights, start.states, 0, 0, seed=0)


def step(run):
    """What a step does to a run, as far as a checkpoint is concerned: everything changes in place."""
    run.step += 1
    run.losses.append(torch.tensor(float(run.step)))
    for value in (*run.weights.values(), *run.states.values()):
        value.add_(run.step)


def everything(run):
    return {**run.weights, **run.states}


def values(run):
    return {name: value.clone() for name, value in everything(run).items()}


def assert_same(run, step, expected):
    assert run.step == step
    assert everything(run).keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in everything(run).items())


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_run_goes_on_with_any_number_of_ranks_and_under_its_own_plan_bit_for_bit(tmp_path, ranks):
    saved, resumed = write_build(tmp_path / "saved", 2), write_build(tmp_path / "resumed", ranks)
    options = ["--checkpoint", tmp_path / "run", "--checkpoint-every", 3]
    before = losses(saved, 2, "--steps", 3, *options)
    after = losses(resumed, ranks, "--steps", 7, "--resume", *options)
    eager, weights = train_eagerly(saved, 7)
    assert after[:3] == before
    assert after == pytest.approx(eager, rel=1e-12)
    if ranks == 2:
        uninterrupted = losses(saved, 2, "--steps", 7, "--save", tmp_path / "whole.safetensors")
        assert after == uninterrupted
    out = tmp_path / "out.safetensors"
    again = train(saved, 2, "--steps", 0, "--resume", "--checkpoint", tmp_path / "run", "--save", out)
    assert again.codes == [0, 0], again.errors
    assert names(tmp_path / "run") == ["step-00000006", "step-00000007"]
    for name, value in load_file(out).items():
        torch.testing.assert_close(value, weights[name], rtol=1e-12, atol=1e-12)


@pytest.mark.ranks
def test_a_run_that_resumes_before_there_is_a_checkpoint_begins(tmp_path):
    folder = write_build(tmp_path / "build", 1)
    result = train(folder, 1, "--steps", 2, "--resume", "--checkpoint", tmp_path / "run")
    assert result.codes == [0], result.errors
    assert "the run begins" in result.output
    assert names(tmp_path / "run") == ["step-00000002"]


@pytest.mark.ranks
def test_a_new_run_keeps_out_of_the_folder_of_another(tmp_path):
    folder = write_build(tmp_path / "build")
    options = ["--steps", 2, "--checkpoint", tmp_path / "run"]
    assert train(folder, 2, *options).codes == [0, 0]
    refused = train(folder, 2, *options)
    assert refused.codes == [1, 1]
    assert refused.errors.count("holds checkpoints of a run, the newest of step 2") == 2
    assert "--resume" in refused.errors


@pytest.mark.ranks
def test_options_of_checkpoints_ask_for_their_folder(tmp_path):
    folder = write_build(tmp_path / "build", 1)
    for option in (["--resume"], ["--checkpoint-every", 2], ["--keep", 1]):
        refused = train(folder, 1, *option)
        assert refused.codes == [1]
        assert f"{option[0]} is given, but no folder" in refused.errors


def die_halfway():
    """Kill the process while it writes a file of its fourth step."""
    real = checkpoint_storage.write_checksummed

    def write_or_die(path, pieces, read):
        def read_or_die(name):
            if name.startswith("w/momentum") and path.match("step-00000004*/rank00001.safetensors"):
                os.kill(os.getpid(), signal.SIGKILL)
            return read(name)

        return real(path, pieces, read_or_die)

    checkpoint_storage.write_checksummed = write_or_die


@pytest.mark.ranks
def test_a_rank_that_is_killed_while_it_writes_leaves_the_checkpoint_before_whole(tmp_path):
    folder = write_build(tmp_path / "build")
    options = ["--checkpoint", tmp_path / "run", "--checkpoint-every", 2, "--steps", 6]
    killed = train(folder, 2, *options, patch=die_halfway)
    assert -signal.SIGKILL in killed.codes
    assert 0 not in killed.codes
    assert names(tmp_path / "run") == ["step-00000002", "step-00000004.unfinished"]
    after = losses(folder, 2, "--resume", *options)
    assert after == pytest.approx(train_eagerly(folder, 6)[0], rel=1e-12)
    assert names(tmp_path / "run") == ["step-00000004", "step-00000006"]


@pytest.mark.ranks
def test_all_ranks_say_which_file_is_damaged_whoever_reads_it(tmp_path):
    build = write_build(tmp_path / "build", 2)
    options = ["--checkpoint", tmp_path / "run", "--checkpoint-every", 1]
    assert train(build, 2, "--steps", 2, *options).codes == [0, 0]
    path = tmp_path / "run" / "step-00000002" / "rank00001.safetensors"
    content = path.read_bytes()
    place = 8 + int.from_bytes(content[:8], "little")
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    refused = train(build, 2, "--steps", 3, "--resume", *options)
    assert refused.codes == [1, 1]
    assert refused.errors.count("rank00001.safetensors is damaged between bytes") == 2
    assert refused.errors.count("--resume 1") == 2
    chosen = train(build, 2, "--steps", 3, "--resume", 1, *options)
    assert chosen.codes == [0, 0], chosen.errors
    assert "step-00000002, which this run did anew, is set aside" in chosen.output


class Crash(BaseException):
    pass


def test_whenever_a_process_ends_the_newest_checkpoint_is_whole_and_exact(tmp_path, alone, monkeypatch):
    """Ends it at every call that changes the file system, one after another."""
    places = [(os, "fsync"), (Path, "mkdir"), (Path, "rename"), (Path, "replace"), (Path, "unlink")]
    places += [(os, "rmdir"), (os, "unlink")]
    real = {(owner, name): getattr(owner, name) for owner, name in places}
    run = new_run(alone)
    expected = {}
    writer = Checkpoints(tmp_path / "run", alone, 0, CPU, keep=1)
    for crash_at in range(1, 200):
        calls = iter(range(1, 10**6))

        def counted(function, calls=calls, crash_at=crash_at):
            def call(*arguments, **options):
                if next(calls) == crash_at:
                    raise Crash
                return function(*arguments, **options)

            return call

        step(run)
        expected[run.step] = values(run)
        with monkeypatch.context() as patched:
            for (owner, name), function in real.items():
                patched.setattr(owner, name, counted(function))
            writer.save(run, DATA)
            crashed = False
            try:
                writer.wait()
            except Crash:
                crashed = True
        reader = Checkpoints(tmp_path / "run", alone, 0, CPU)
        found = reader.start(NEWEST)
        if found is None:
            assert crashed
            assert run.step == crash_at == 1 or not any((tmp_path / "run").glob("step-????????"))
        else:
            assert_same(found, found.step, expected[found.step])
            assert found.step == run.step or crashed
        if not crashed:
            break
        writer = Checkpoints(tmp_path / "run", alone, 0, CPU, keep=1)
        if found is not None:
            writer.start(NEWEST)
    assert not crashed
    assert crash_at > 15
    assert names(tmp_path / "run") == [f"step-{run.step:08}"]


def test_what_is_saved_is_the_step_it_was_asked_for_however_far_training_is(tmp_path, alone, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    real = checkpoint_storage.write_checksummed

    def wait_first(path, pieces, read):
        begun.set()
        assert go_on.wait(60)
        return real(path, pieces, read)

    monkeypatch.setattr(checkpoint_storage, "write_checksummed", wait_first)
    checkpoints, run = Checkpoints(tmp_path / "run", alone, 0, CPU, every=2), new_run(alone)
    expected = {}
    for _ in range(3):
        step(run)
        expected[run.step] = values(run)
        checkpoints.after_step(run, DATA)
    assert begun.wait(60)
    assert names(tmp_path / "run") == ["step-00000002.unfinished"]
    go_on.set()
    checkpoints.save(run, DATA)
    checkpoints.close()
    for number in (2, 3):
        found = Checkpoints(tmp_path / "run", alone, 0, CPU).start(number)
        assert_same(found, number, expected[number])
        assert found.losses == [float(i) for i in range(1, number + 1)]


def test_only_the_newest_are_kept(tmp_path, alone):
    checkpoints, run = Checkpoints(tmp_path / "run", alone, 0, CPU, every=1, keep=3), new_run(alone)
    for _ in range(5):
        step(run)
        checkpoints.after_step(run, DATA)
    checkpoints.close()
    assert names(tmp_path / "run") == ["step-00000003", "step-00000004", "step-00000005"]


def test_what_a_resumed_run_does_anew_is_set_aside(tmp_path, alone, capfd):
    checkpoints, run = Checkpoints(tmp_path / "run", alone, 0, CPU, every=2, keep=9), new_run(alone)
    for _ in range(6):
        step(run)
        checkpoints.after_step(run, DATA)
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path / "run", alone, 0, CPU, every=3, keep=9)
    run = checkpoints.start(2)
    for _ in range(3):
        step(run)
        checkpoints.after_step(run, DATA)
    checkpoints.save(run, DATA)
    checkpoints.close()
    aside = ["step-00000004.abandoned", "step-00000006.abandoned"]
    kept = ["step-00000002", "step-00000003", "step-00000005"]
    assert names(tmp_path / "run") == sorted(aside + kept)
    assert "step-00000006, which this run did anew, is set aside" in capfd.readouterr().out


def test_a_step_is_saved_once(tmp_path, alone):
    checkpoints, run = Checkpoints(tmp_path / "run", alone, 0, CPU, every=1), new_run(alone)
    step(run)
    checkpoints.after_step(run, DATA)
    checkpoints.save(run, DATA)
    checkpoints.close()
    changed = (tmp_path / "run" / "step-00000001" / "checkpoint.json").stat().st_mtime_ns
    again = Checkpoints(tmp_path / "run", alone, 0, CPU)
    again.save(again.start(NEWEST), DATA)
    again.close()
    assert (tmp_path / "run" / "step-00000001" / "checkpoint.json").stat().st_mtime_ns == changed


def test_the_position_of_the_data_comes_along(tmp_path, alone):
    checkpoints, run = Checkpoints(tmp_path / "run", alone, 0, CPU), new_run(alone)
    step(run)
    checkpoints.save(run, Data({"epoch": 3, "rows": [1, 2]}))
    checkpoints.close()
    again, batches = Checkpoints(tmp_path / "run", alone, 0, CPU).start(NEWEST), Data({})
    again.restore(batches)
    assert batches.state == {"epoch": 3, "rows": [1, 2]}


def test_a_full_disk_is_reported_with_the_checkpoint_and_training_does_not_go_on(
    tmp_path, alone, monkeypatch
):
    checkpoints, run = Checkpoints(tmp_path / "run", alone, 0, CPU, every=1), new_run(alone)
    step(run)
    checkpoints.after_step(run, DATA)
    checkpoints.wait()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_storage, "write_checksummed", full)
    step(run)
    checkpoints.after_step(run, DATA)
    with pytest.raises(BuildError, match=r"step-00000002: .*No space left"):
        checkpoints.wait()
    assert Checkpoints(tmp_path / "run", alone, 0, CPU).start(NEWEST).step == 1


def test_the_manifest_says_what_the_run_was(tmp_path, alone):
    checkpoints, run = Checkpoints(tmp_path / "run", alone, 0, CPU), new_run(alone)
    step(run)
    checkpoints.save(run, DATA)
    checkpoints.close()
    saved = tmp_path / "run" / "step-00000001"
    described = json.loads((saved / "checkpoint.json").read_text())
    assert described["run"]["plan"] == "dp=1"
    assert described["run"]["position"] == {"step": 0}
    pieces = load_file(saved / "rank00000.safetensors")
    assert torch.equal(pieces["w@0,0"], run.weights["w"])
    assert read_manifest(saved).tensors.keys() == {*everything(run), "superscaler/losses"}
