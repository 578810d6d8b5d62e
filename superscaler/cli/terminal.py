"""What a person sees while a command runs, and what a program reads when it is done."""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any, TextIO

from superscaler.errors import BuildError

ERROR, NOTE = "31;1", "33"
"""Colours, as in ECMA-48: bold red, yellow."""
_FIRST_SECONDS, _EVERY_SECONDS = 1.0, 0.5
"""When something is said to take its time, and how often again."""
_CLEAR = "\r\033[K"


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Say on a terminal what is going on and for how long, once it takes more than a second."""
    if not sys.stderr.isatty():
        yield
        return
    start, is_done = time.monotonic(), Event()
    reporter = Thread(target=_report, args=(what, start, is_done), daemon=True)
    reporter.start()
    try:
        yield
    finally:
        is_done.set()
        reporter.join()


def _report(what: str, start: float, is_done: Event) -> None:
    """Keep a line of the terminal; what took long stays to be read."""
    if is_done.wait(_FIRST_SECONDS):
        return
    while True:
        sys.stderr.write(f"{_CLEAR}{what}: {int(time.monotonic() - start)} s ...")
        sys.stderr.flush()
        if is_done.wait(_EVERY_SECONDS):
            break
    sys.stderr.write(f"{_CLEAR}{what}: {time.monotonic() - start:.1f} s\n")
    sys.stderr.flush()


def coloured(text: str, colour: str, stream: TextIO) -> str:
    """The text in a colour, where a stream is a terminal and the user has not set NO_COLOR (no-color.org)."""
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\033[{colour}m{text}\033[0m"


def say_error(text: str) -> None:
    """Say on standard error why a command failed."""
    print(f"{coloured('superscaler: error:', ERROR, sys.stderr)} {text}", file=sys.stderr)


def say_note(text: str) -> None:
    """Say on standard error what one should know."""
    print(f"{coloured('note:', NOTE, sys.stderr)} {text}", file=sys.stderr)


def print_json(result: Mapping[str, Any]) -> None:
    """Print a command's result for a program to read."""
    print(json.dumps(result, indent=2, allow_nan=False))


def write_text(path: Path, text: str) -> None:
    """Write a file the user named.

    Raises:
        BuildError: It cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BuildError(
            f"cannot write {path}: {error}", remedy="name a file in a folder that exists"
        ) from error
