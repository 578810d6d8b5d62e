"""The next step is read while this one computes; errors come in their step, and nothing holds up the end."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from superscaler.errors import BuildError
from superscaler.runtime.data.read_ahead import ReadAhead

ROOT = Path(__file__).parents[3]


def test_the_next_step_is_read_before_it_is_asked_for():
    began = {step: threading.Event() for step in range(4)}

    def read(step):
        began[step].set()
        return step

    ahead = ReadAhead(read, 60)
    assert ahead.get(0) == 0
    assert not began[1].is_set()
    ahead.start(1)
    assert began[1].wait(60)
    assert ahead.get(1) == 1


def test_no_two_reads_are_at_once_and_each_step_is_read_once():
    reading, steps = threading.Lock(), []

    def read(step):
        assert reading.acquire(blocking=False)
        steps.append(step)
        reading.release()
        return step

    ahead = ReadAhead(read, 60)
    for step in range(50):
        assert ahead.get(step) == step
        ahead.start(step + 1)
        ahead.start(step + 1)
    assert ahead.get(50) == 50
    assert steps == list(range(51))


def test_another_step_than_the_one_read_ahead_is_read_anew():
    ahead = ReadAhead(lambda step: step * 10, 60)
    ahead.start(1)
    assert ahead.get(7) == 70
    assert ahead.get(1) == 10


def test_an_error_waits_for_its_step():
    def read(step):
        if step == 1:
            raise KeyError("broken")
        return step

    ahead = ReadAhead(read, 60)
    ahead.start(1)
    ahead.start(2)
    with pytest.raises(KeyError, match="broken"):
        ahead.get(1)
    assert ahead.get(2) == 2


def test_a_read_that_does_not_come_back_is_an_error():
    never = threading.Event()
    ahead = ReadAhead(lambda step: never.wait(), 0.01)
    with pytest.raises(BuildError, match=r"(?s)the data of step 5 was not read in 0 s.*--timeout"):
        ahead.get(4)
    never.set()


def test_nothing_is_begun_after_the_end():
    steps = []
    ahead = ReadAhead(steps.append, 60)
    ahead.close()
    ahead.start(3)
    assert steps == []


@pytest.mark.parametrize(
    ("reader", "patience"), [("threading.Event().wait()", 0.2), ("torch.ones(10**6).cumsum(0).sum()", 60)]
)
def test_a_process_ends_although_something_is_being_read(reader, patience):
    program = f"""
import threading
import torch
from superscaler.runtime.data import read_ahead
read_ahead._LEAVE_SECONDS = {patience}

def read(step):
    while step:
        {reader}
    return step

ahead = read_ahead.ReadAhead(read, 60)
print(ahead.get(0))
ahead.start(1)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
