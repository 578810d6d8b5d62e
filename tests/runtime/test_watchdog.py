"""A rank that does not come ends all ranks in time, and the report names it and where every rank is."""

import os
import re
import signal

import pytest
import torch
import torch.distributed as dist

from superscaler.runtime.positions import Position, explain
from superscaler.runtime.waits import Waits
from tests.runtime.ranks import run_ranks
from tests.runtime.started_ranks import (
    LIMIT,
    has_reached,
    pid,
    ranks_alone,
    torchrun,
    wait_until,
    write_slow_build,
)

TIMEOUT = 8
"""Seconds; a rank of a busy machine that is well must not seem to be missing."""
TOO_LONG = f"takes longer than the {TIMEOUT} s allowed"


def errors(folder, ranks):
    return [(folder / f"err{rank}.txt").read_text() for rank in range(ranks)]


def report_of(folder, ranks):
    """What the one rank says that says who is missing; on a slow machine others may say that they heard nothing."""
    told = [text for text in errors(folder, ranks) if TOO_LONG in text and "but has not" not in text]
    assert len(told) == 1
    return told[0]


def end(processes):
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.ranks
def test_a_rank_that_sleeps_is_named_with_its_line_and_so_are_those_that_wait(tmp_path):
    folder = write_slow_build(tmp_path, 4, "rt.rank == 1 and step == 3 and __import__('time').sleep(600)")
    ranks = ranks_alone(folder, 4, "--steps", 5, "--timeout", TIMEOUT)
    try:
        assert [process.wait(LIMIT) for process in ranks] == [1, 1, 1, 1]
    finally:
        end(ranks)
    told = errors(folder, 4)
    report = report_of(folder, 4)
    assert re.search(
        r"busy elsewhere: rank 1 for \d+ s in step 3, at stage0.py:\d+, train_step: rt.rank == 1", report
    )
    assert re.search(
        r"waiting: ranks 0,2,3 for \d+ s in step 3, in all_gather over dp \(ranks 0-3\), "
        r'at stage0.py:\d+, train_step: w = rt.all_gather\(p\["w"\], dp, 0\)', report,
    )  # fmt: skip
    assert "missing:" not in report
    assert sum("ends, as rank" in text for text in told) >= 1
    assert "raise --timeout" in report


@pytest.mark.ranks
def test_a_rank_that_is_stopped_is_missing(tmp_path):
    folder = write_slow_build(tmp_path, 4)
    ranks = ranks_alone(folder, 4, "--steps", 100_000, "--timeout", TIMEOUT)
    try:
        wait_until(has_reached(folder, 3, "out0.txt"), ranks[0])
        ranks[2].send_signal(signal.SIGSTOP)
        assert [process.wait(LIMIT) for process in (*ranks[:2], ranks[3])] == [1, 1, 1]
    finally:
        end(ranks)
    report = report_of(folder, 4)
    assert re.search(r"missing: rank 2 gives no sign of life, last seen (in step|at) ", report)
    assert "waiting: ranks 0,1,3 for " in report


OWN_LOOP = f"""
import sys, time, torch
from superscaler.runtime.loaded import load
step = load(sys.path[0], "cpu", timeout={TIMEOUT}, allow_edited=True)
batch = {{name: torch.zeros(shape, dtype=dtype) for name, (dtype, shape) in step.build.inputs.items()}}
for number in range(5):
    if step.rank == 1 and number == 3:
        time.sleep(600)
    step(batch)
"""


@pytest.mark.ranks
def test_a_rank_that_sleeps_in_a_loop_of_ones_own_is_named_too(tmp_path):
    folder = write_slow_build(tmp_path, 4)
    (folder / "own.py").write_text(OWN_LOOP)
    ranks = ranks_alone(folder, 4, script="own.py")
    try:
        assert [process.wait(LIMIT) for process in ranks] == [1, 1, 1, 1]
    finally:
        end(ranks)
    report = report_of(folder, 4)
    assert re.search(r"busy elsewhere: rank 1 for \d+ s in step 3", report)
    assert re.search(r"waiting: ranks 0,2,3 for \d+ s in step 4, in all_gather over dp \(ranks 0-3\)", report)


@pytest.mark.ranks
def test_the_rank_that_keeps_the_store_is_missed_without_it(tmp_path):
    folder = write_slow_build(tmp_path, 2)
    ranks = ranks_alone(folder, 2, "--steps", 100_000, "--timeout", TIMEOUT)
    try:
        wait_until(has_reached(folder, 3, "out0.txt"), ranks[0])
        ranks[0].send_signal(signal.SIGSTOP)
        assert ranks[1].wait(LIMIT) == 1
    finally:
        end(ranks)
    report = (folder / "err1.txt").read_text()
    assert "the rank that keeps the store (mostly rank 0) does not answer" in report
    assert "waiting: rank 1 for " in report


@pytest.mark.ranks
def test_torchrun_ends_too_with_the_report(tmp_path):
    folder = write_slow_build(tmp_path, 2)
    run = torchrun(folder, 2, "--steps", 100_000, "--timeout", TIMEOUT, launcher=("--shutdown-timeout", "2"))
    wait_until(has_reached(folder, 3), run)
    os.kill(pid(folder, 0), signal.SIGSTOP)
    assert run.wait(LIMIT) == 1
    assert "missing: rank 0 gives no sign of life" in (folder / "err.txt").read_text()


def test_the_report_tells_silent_busy_and_waiting_ranks_apart():
    def at(beat, waits_for="", step=7, line="stage0.py:5, forward: x", seconds=3.0):
        return Position(beat, step, waits_for, line, seconds)

    before = {0: at(3, "a"), 1: at(3, "a"), 2: at(9), 3: at(4), 4: None}
    after = {0: at(6, "a", seconds=9.0), 1: at(6, "a", seconds=8.0), 2: at(9), 3: at(8), 4: None}
    assert explain(before, after).splitlines() == [
        "missing: rank 2 gives no sign of life, last seen in step 7, at stage0.py:5, forward: x",
        "  missing: rank 4 gives no sign of life, and never did",
        "  busy elsewhere: rank 3 for 3 s in step 7, at stage0.py:5, forward: x",
        "  waiting: ranks 0,1 for 9 s in step 7, in a, at stage0.py:5, forward: x",
    ]
    disagreeing = explain({0: at(1, "a"), 1: at(1, "b")}, {0: at(2, "a"), 1: at(2, "b")})
    assert disagreeing.endswith("all ranks wait: they do not agree on which communication is next")


def test_a_wait_knows_the_line_that_called_the_runtime():
    waits = Waits()
    assert waits.oldest() is None
    with waits.during("all_reduce", "dp", (0, 1)):
        wait = waits.oldest()
    assert waits.oldest() is None
    assert (wait.operation, wait.where, wait.ranks) == ("all_reduce", "dp", (0, 1))
    assert str(wait.line).startswith("test_watchdog.py:")
    assert 'with waits.during("all_reduce", "dp", (0, 1)):' in str(wait.line)


def test_on_a_gpu_a_communication_counts_until_the_device_has_done_it(monkeypatch):
    done = set()

    class Event:
        def record(self):
            pass

        def query(self):
            return self in done

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    waits = Waits("cuda")
    for operation in ("all_reduce", "all_gather"):
        with waits.during(operation, "dp", (0, 1)):
            assert waits.oldest() is not None
    assert waits.oldest().operation == "all_reduce"
    done.add(waits._queued[0][1])
    assert waits.oldest().operation == "all_gather"
    done.add(waits._queued[1][1])
    assert waits.oldest() is None


def clone_stores(rank):
    from torch.distributed.distributed_c10d import _get_default_store

    clone = _get_default_store().clone()
    clone.set(f"seen/{rank}", str(rank))
    return clone.get(f"seen/{1 - rank}").decode()


@pytest.mark.ranks
def test_a_store_can_be_asked_by_several_threads(tmp_path):
    assert run_ranks(clone_stores, 2, tmp_path) == ["1", "0"]
    assert not dist.is_initialized()
