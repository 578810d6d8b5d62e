"""The command line on a terminal and off it: progress, colours, exit codes, interruption, results for programs."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from superscaler.cli import main
from tests.command_line_page import documented_keys

ROOT = Path(__file__).parents[1]
SIZES = ["--set", "layers=2", "--set", "width=16", "--set", "vocab=32", "--batch", "4"]
TINY = [f"{ROOT / 'models' / 'gpt.py'}:tiny", *SIZES]
WAITS = """
import pathlib, time
def build(name):
    pathlib.Path(__file__).with_name("begun").touch()
    time.sleep(100)
def example_inputs(name, batch): ...
"""
IMPATIENT = (
    "import sys; from superscaler.cli import terminal, main; terminal._FIRST_SECONDS = 0.0; sys.exit(main())"
)


def environment(**more):
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    return {**kept, "PYTHONPATH": str(ROOT), "TERM": "xterm", **more}


def on_a_terminal(*arguments, start=("-m", "superscaler.cli"), **more):
    """Exit code, standard output, and what a terminal gets of standard error."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, *start, *arguments], stdout=subprocess.PIPE, stderr=theirs, env=environment(**more)
    )
    os.close(theirs)
    seen = b""
    try:
        while part := os.read(ours, 4096):
            seen += part
    except OSError:  # Linux says so where the other end is closed
        pass
    out, _ = process.communicate(timeout=100)
    os.close(ours)
    return process.returncode, out.decode(), seen.decode()


def piped(*arguments, start=("-m", "superscaler.cli"), **more):
    done = subprocess.run(
        [sys.executable, *start, *arguments], capture_output=True, text=True, timeout=100, check=False,
        env=environment(**more),
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_a_terminal_sees_what_takes_long_and_a_pipe_does_not():
    code, out, seen = on_a_terminal("show", *TINY, start=("-c", IMPATIENT))
    assert code == 0, seen
    assert "tracing: " in seen
    assert "planning: " in seen
    assert "tracing" not in out
    code, alone, err = piped("show", *TINY, start=("-c", IMPATIENT))
    assert (code, alone, err) == (0, out, "")


def test_errors_are_red_on_a_terminal_only_and_not_against_the_users_will():
    code, _, seen = on_a_terminal("show", "nothing.py:tiny")
    assert (code, seen.count("\033[")) == (1, 2)
    assert "\033[31;1msuperscaler: error:\033[0m no Python file" in seen
    for more in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\033" not in on_a_terminal("show", "nothing.py:tiny", **more)[2]
    assert "\033" not in piped("show", "nothing.py:tiny")[2]


UNREADABLE = [
    [],
    ["nothing"],
    ["show"],
    ["show", *TINY, "--no-such-option"],
    ["show", *TINY, "--", "--steps"],
    ["check", *TINY, "--steps", "0"],
]


@pytest.mark.parametrize("arguments", UNREADABLE)
def test_a_command_line_that_cannot_be_read_ends_with_2(arguments):
    code, out, err = piped(*arguments)
    assert (code, out) == (2, "")
    assert "usage: superscaler" in err
    assert "Traceback" not in err


def test_an_interruption_ends_without_a_traceback(tmp_path):
    (tmp_path / "waits.py").write_text(WAITS)
    process = subprocess.Popen(
        [sys.executable, "-m", "superscaler.cli", "check", f"{tmp_path / 'waits.py'}:any"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in what a shell runs behind itself
    )  # fmt: skip
    for _ in range(600):
        if (tmp_path / "begun").exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "superscaler: interrupted\n")


def test_who_reads_no_further_gets_no_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "superscaler.cli", "show", *TINY, "--graph"],
        stdout=writer, stderr=subprocess.PIPE, text=True, timeout=100, check=False, env=environment(),
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_the_version_is_said(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith("superscaler 0.")


PLAN = ["--cluster", "local:2", "--plan", "pp=2,micro_batches=2"]


def json_of(capsys, *arguments):
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_results_for_programs_have_their_documented_keys(capsys, tmp_path):
    folder = str(tmp_path / "gpt")
    found = {"compile": json_of(capsys, "compile", *TINY, *PLAN, "-o", folder)}
    assert found["compile"]["launch"] == ["torchrun", "--nproc-per-node", "2", f"{folder}/train.py"]
    found["check"] = json_of(capsys, "check", *TINY, *PLAN, "--dtype", "float64")
    assert 0 <= max(found["check"]["differences"].values()) < 1e-10
    assert json_of(capsys, "check", *TINY, *PLAN, "--static")["differences"] == {}
    found["show"] = json_of(capsys, "show", *TINY, *PLAN)
    assert json_of(capsys, "show", folder) == found["show"]
    found["simulate"] = json_of(capsys, "simulate", *TINY, *PLAN)
    parts = ("computing_seconds", "exposed_seconds", "waiting_seconds")
    for row in found["simulate"]["rows"]:
        assert sum(row[part] for part in parts) == pytest.approx(found["simulate"]["step_seconds"])
    found["launch"] = json_of(capsys, "launch", folder, "--hosts", "alpha,beta")
    for command, result in found.items():
        assert list(result) == documented_keys(command), command


def test_a_search_does_not_get_between_a_result_and_its_reader(capsys):
    assert main(["simulate", *TINY, "--cluster", "local:2", "--plan", "auto", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["devices"] == 2
    assert captured.err.startswith("auto: ")


@pytest.mark.parametrize(
    "words", [["--graph"], ["--communication"], ["--explain", "h.0"], ["-o", "page.html"]]
)
def test_what_a_build_cannot_show_is_refused(capsys, tmp_path, words):
    (tmp_path / "plan.json").touch()
    assert main(["show", str(tmp_path), *words]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words[0] in captured.err
    assert "remedy: " in captured.err


def test_a_profile_that_cannot_be_written_is_refused_before_it_is_measured(capsys, tmp_path):
    (tmp_path / "file").touch()
    assert main(["profile", "--backend", "gloo", "-o", str(tmp_path / "file" / "mine.yaml")]) == 1
    assert "name files in folders that can be written" in capsys.readouterr().err


def test_text_that_has_no_keys_is_refused(capsys):
    assert main(["show", *TINY, "--graph", "--json"]) == 1
    assert "leave out --json" in capsys.readouterr().err
