"""Code of the user that gives data: ``FILE.py:FUNCTION`` loaded, and errors raised in it told with their line."""

import importlib.util
import linecache
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import __file__ as _torch_file

from superscaler.errors import BuildError

_LIBRARIES = tuple(
    os.path.dirname(os.path.abspath(file)) + os.sep
    for file in (Path(__file__).parents[1], os.__file__, str(_torch_file))
)


def load_function(reference: str) -> Callable[[], Any]:
    """The function that ``FILE.py:FUNCTION`` names.

    The file may import what lies beside it.

    Raises:
        BuildError: There is no such file or function, or the file fails while it is imported.
    """
    path, _, name = reference.rpartition(":")
    file = Path(path)
    if not file.is_file():
        raise BuildError(f"no Python file {path!r}", remedy="name a file and a function in it: data.py:train")
    specification = importlib.util.spec_from_file_location(f"superscaler_data_{file.stem}", file)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    # Samples are classes of this file: worker processes of a DataLoader look for it, and for its neighbours.
    sys.modules[specification.name] = module
    sys.path.insert(0, str(file.resolve().parent))
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        raise users_error(error, f"{path} cannot be imported") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = ", ".join(
            key for key, value in vars(module).items() if _is_defined_in(value, module.__name__)
        )
        raise BuildError(
            f"{path} has no function {name!r}; it has {known or 'none'}",
            remedy="name a function without arguments that returns a dataset or an iterable of samples",
        )
    return function


def users_error(error: Exception, what: str) -> BuildError:
    """The error to raise where the user's code raised another: `what`, the line, and the error itself."""
    return BuildError(
        f"{what}: {type(error).__name__}: {error}",
        where=failing_line(error),
        remedy="correct what this line does, or the data it reads",
    )


def failing_line(error: Exception) -> str:
    """The innermost line of the user's on the way to where `error` was raised, with its text."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{os.path.relpath(error.filename)}:{error.lineno}: {(error.text or '').strip()}"
    line, step = "", error.__traceback__
    while step is not None:
        file = step.tb_frame.f_code.co_filename
        if not file.startswith(_LIBRARIES) and not file.startswith("<"):
            text = linecache.getline(file, step.tb_lineno).strip()
            line = f"{os.path.relpath(file)}:{step.tb_lineno}: {text}"
        step = step.tb_next
    return line


def _is_defined_in(value: Any, module: str) -> bool:
    return callable(value) and getattr(value, "__module__", None) == module
