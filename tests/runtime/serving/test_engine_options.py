"""Options that ``superscaler serve`` was given reach the engine as they are; what is said to it behind them wins."""

import argparse

import pytest

from superscaler.runtime.serving.engine_options import add_engine_options, engine_words
from superscaler.runtime.serving.launch import parser
from superscaler.runtime.serving.policies import POLICIES


def read(*words):
    commands = argparse.ArgumentParser()
    add_engine_options(commands)
    return commands.parse_args(words)


def read_by_engine(*words):
    return vars(parser("serve.py").parse_args(["--connect", "socket", *words]))


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--seed=-3", "--timeout", "2.5", "--threads", "2", "--policy", max(POLICIES)],
        ["--step-tokens", "64", "--step-sequences", "8", "--chunk-tokens", "16", "--host-pages", "12"],
        ["--speculate", "ngram", "--speculate", "a folder:weights", "--tree", "1,1,3"],
    ],
)
def test_an_engine_is_told_what_the_command_was_told(words):
    options = read(*words)
    assert read_by_engine(*engine_words(options)) == read_by_engine(*words)
    assert vars(options).items() <= read_by_engine(*words).items()


def test_what_a_user_says_to_the_engine_itself_comes_last():
    told = read_by_engine(*engine_words(read("--step-tokens", "64")), "--step-tokens", "32")
    assert told["step_tokens"] == 32


@pytest.mark.parametrize("words", [["--host-pages", "-1"], ["--threads", "0"], ["--policy", "random"]])
def test_what_no_engine_takes_is_refused_by_the_command(words, capsys):
    with pytest.raises(SystemExit):
        read(*words)
    assert words[0] in capsys.readouterr().err
