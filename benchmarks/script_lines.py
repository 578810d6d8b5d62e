"""How long a plan script is: lines of code, its own and of what it calls in the library of plans."""

import ast
import inspect
import sys
import tokenize
from collections.abc import Callable, Iterable
from io import StringIO
from textwrap import dedent
from typing import Any

from superscaler.planner.schedules.maker import Named

LIBRARY = ("superscaler.planner.recipes", "superscaler.planner.schedules")
NOT_COUNTED = {Named}
"""What makes a schedule of any row program, and checks it."""
_NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
}  # fmt: skip


def script_lines(scripts: Iterable[Callable[..., Any]], only_own: bool = False) -> int:
    """Lines of code of scripts, and of all functions they call that are in the library of plans, each once."""
    return sum(map(_lines, scripts if only_own else with_called(scripts)))


def with_called(scripts: Iterable[Callable[..., Any]]) -> list[Callable[..., Any]]:
    """The scripts, and all functions and classes they call that are in the library of plans, each once."""
    found = list(dict.fromkeys(scripts))
    for one in found:  # grows while it is read
        found += [other for other in dict.fromkeys(_called(one)) if other not in found]
    return found


def _called(script: Callable[..., Any]) -> list[Callable[..., Any]]:
    space = vars(sys.modules[script.__module__])
    found = []
    for node in ast.walk(ast.parse(dedent(inspect.getsource(script)))):
        if isinstance(node, ast.Name):
            found.append(space.get(node.id))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = space.get(node.value.id)
            found.append(getattr(module, node.attr, None) if inspect.ismodule(module) else None)
    return [
        one
        for one in found
        if (inspect.isfunction(one) or inspect.isclass(one))
        and one not in NOT_COUNTED
        and one.__module__.startswith(LIBRARY)
    ]


def _lines(script: Callable[..., Any]) -> int:
    """Lines with code: no blank ones, no comments, no docstrings."""
    source = dedent(inspect.getsource(script))
    lines = {
        number
        for token in tokenize.generate_tokens(StringIO(source).readline)
        if token.type not in _NO_CODE
        for number in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)
