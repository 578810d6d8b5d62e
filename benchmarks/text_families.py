"""Five families of real text that a Debian machine with Python has anyway; the tokens are bytes."""

import doctest
import gzip
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from models.text import read_topics

PIECE = 2048
"""Bytes of one family that follow each other."""


def families(size: int) -> dict[str, bytes]:
    """By name, up to `size` bytes of each; one for which this machine has nothing is left out."""
    found = {name: _first(pieces(), size) for name, pieces in _SOURCES.items()}
    return {name: text for name, text in found.items() if len(text) >= 4 * PIECE}


def split(text: bytes, held_out: float = 0.1) -> tuple[list[bytes], list[bytes]]:
    """Pieces to train on, and pieces that nobody has seen: the last part of each tenth piece's worth."""
    pieces = [text[start : start + PIECE] for start in range(0, len(text) - PIECE + 1, PIECE)]
    every = round(1 / held_out)
    return (
        [piece for number, piece in enumerate(pieces) if number % every],
        [piece for number, piece in enumerate(pieces) if number % every == 0],
    )


def _first(texts: Iterable[str], size: int) -> bytes:
    found = bytearray()
    for text in texts:
        found += text.encode("ascii", "replace") + b"\n\n"
        if len(found) >= size:
            break
    return bytes(found[:size])


def _prose() -> Iterator[str]:
    """Licences, and the documentation of Python's language."""
    yield from _read(Path("/usr/share/common-licenses").glob("*"))
    yield read_topics().decode()


def _code() -> Iterator[str]:
    return _read(_library().glob("*.py"))


def _manual() -> Iterator[str]:
    """Pages of the manual, as their authors mark them up."""
    return _read(Path("/usr/share/man/man1").glob("*.1.gz"))


def _dialogue() -> Iterator[str]:
    """What people say to an interpreter, and what it answers: the examples in Python's own library."""
    parser = doctest.DocTestParser()
    for text in _read(_library().rglob("*.py")):
        for docstring in re.findall(r'"""(.*?)"""', text, re.DOTALL):
            try:
                examples = parser.get_examples(docstring)
            except ValueError:
                continue
            if examples:
                yield "".join(_said(example) for example in examples)


def _said(example: doctest.Example) -> str:
    first, *rest = example.source.splitlines()
    return "\n".join([f">>> {first}", *(f"... {line}" for line in rest), example.want])


def _lists() -> Iterator[str]:
    """What changed from version to version of Debian's packages."""
    return _read(Path("/usr/share/doc").glob("*/changelog.Debian.gz"))


_SOURCES: dict[str, Callable[[], Iterator[str]]] = {
    "prose": _prose,
    "code": _code,
    "manual": _manual,
    "dialogue": _dialogue,
    "lists": _lists,
}


def _library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _read(paths: Iterable[Path]) -> Iterator[str]:
    """The texts of files, in the order of their names; a page of the manual that only names another is left out."""
    for path in sorted(paths):
        if not path.is_file() or path.is_symlink() or "site-packages" in path.parts:
            continue
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if len(data) > 400:
            yield data.decode(errors="replace")
