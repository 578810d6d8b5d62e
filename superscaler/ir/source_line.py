"""The line of the user's code that is running now."""

import os
import sys
from importlib.util import find_spec

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_TORCH = find_spec("torch")
_LIBRARIES = (
    _PACKAGE + os.sep,
    os.path.dirname(os.__file__) + os.sep,
    os.path.dirname(_TORCH.origin if _TORCH and _TORCH.origin else os.__file__) + os.sep,
)


def user_line() -> str:
    """The innermost line outside torch, the standard library and this package, as ``models/gpt.py:42``."""
    frame = sys._getframe(1)
    while frame is not None:
        filename = frame.f_code.co_filename
        if _is_users(filename):
            return f"{os.path.relpath(filename)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def failing_line(error: BaseException) -> str:
    """The innermost line of the user's on the way to where `error` was raised."""
    line, step = "", error.__traceback__
    while step is not None:
        filename = step.tb_frame.f_code.co_filename
        if _is_users(filename):
            line = f"{os.path.relpath(filename)}:{step.tb_lineno}"
        step = step.tb_next
    return line


def _is_users(filename: str) -> bool:
    return not filename.startswith(_LIBRARIES) and not filename.startswith("<")
