"""The whole process: it starts, serves, and ends on a signal when it has answered."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[4]
PROGRAM = """
import logging, sys
from superscaler.runtime.serving.server.serving_process import ServingOptions, run
from superscaler.errors import SuperscalerError
logging.basicConfig(level=logging.INFO)
fake = [sys.executable, "-m", "tests.runtime.serving.server.fake_engine", *sys.argv[2:]]
try:
    how = ServingOptions("table", port=0, drain_seconds=float(sys.argv[1]), max_restarts=0)
    run(lambda address: [*fake, "--connect", address], how, None)
except SuperscalerError as error:
    sys.exit(f"error: {error}")
"""


@pytest.fixture
def start():
    started = []

    def begin(*arguments):
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, arguments)],
            cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        started.append(process)
        for line in process.stdout:
            if found := re.search(r"http://127.0.0.1:(\d+)", line):
                return process, int(found[1])
        return process, None

    yield begin
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def ask(port, **body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = {"prompt": [1], "temperature": 0, "stream": True} | body
    connection.request("POST", "/v1/completions", json.dumps(body))
    return connection, connection.getresponse()


def test_after_a_signal_what_runs_is_answered_and_nothing_is_left(start):
    process, port = start(30, "--step-seconds", 0.05)
    connection, answer = ask(port, max_tokens=40)
    assert answer.readline().startswith(b"data: ")
    process.send_signal(signal.SIGTERM)
    rest = answer.read()
    connection.close()
    assert rest.count(b"data: {") == 39
    assert rest.endswith(b"data: [DONE]\n\n")
    assert process.wait(60) == 0


def test_what_takes_longer_than_the_drain_is_ended_with_an_error(start):
    process, port = start(0.3, "--step-seconds", 0.05)
    connection, answer = ask(port, max_tokens=500)
    answer.readline()
    process.send_signal(signal.SIGINT)
    rest = answer.read()
    connection.close()
    assert b"the server is stopped" in rest
    assert rest.endswith(b"data: [DONE]\n\n")
    assert process.wait(60) == 0


def test_an_engine_that_cannot_start_ends_the_process_with_what_it_printed(start):
    process, port = start(1, "--fails")
    assert port is None
    assert process.wait(60) == 1


def test_when_the_engine_dies_for_good_so_does_the_process(start):
    process, port = start(1, "--dies-after", 5)
    connection, answer = ask(port, max_tokens=50)
    assert b"the engine died" in answer.read()
    connection.close()
    assert process.wait(60) == 1
    assert "out of memory" in process.stdout.read()
