"""Python source as HTML: a numbered line each, with keywords, strings, numbers and comments marked."""

import io
import keyword
import tokenize
from collections.abc import Iterator
from html import escape

_CLASSES = {tokenize.STRING: "s", tokenize.NUMBER: "n", tokenize.COMMENT: "c"}


def source_html(source: str) -> str:
    """The lines of a file; what is not Python is shown as it is."""
    lines = source.splitlines()
    marks: dict[int, list[tuple[int, int, str]]] = {}
    try:
        for line, start, stop, name in _marks(source, lines):
            marks.setdefault(line, []).append((start, stop, name))
    except (tokenize.TokenError, SyntaxError):
        marks = {}
    return "\n".join(
        f'<span class="line">{_line(line, marks.get(number, ()))}</span>'
        for number, line in enumerate(lines, 1)
    )


def _marks(source: str, lines: list[str]) -> Iterator[tuple[int, int, int, str]]:
    """Line, start and stop in it, and class of what is marked; what spans several lines is a mark on each."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        name = _CLASSES.get(token.type, "k" if keyword.iskeyword(token.string) else "")
        if not name:
            continue
        (first, start), (last, stop) = token.start, token.end
        for line in range(first, last + 1):
            yield line, start if line == first else 0, stop if line == last else len(lines[line - 1]), name


def _line(text: str, marks: list[tuple[int, int, str]] | tuple[()]) -> str:
    parts, reached = [], 0
    for start, stop, name in marks:
        parts += [escape(text[reached:start]), f'<i class="{name}">{escape(text[start:stop])}</i>']
        reached = stop
    return "".join([*parts, escape(text[reached:])])
