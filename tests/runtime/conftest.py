"""No process that a test of the runtime has started outlives it."""

import subprocess

import pytest

from tests.runtime.started_ranks import STARTED


@pytest.fixture(autouse=True)
def end_what_was_started():
    yield
    for process in STARTED:
        process.terminate()  # torchrun ends its ranks then, and kills those that do not end after 30 seconds
        try:
            process.wait(45)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    STARTED.clear()
