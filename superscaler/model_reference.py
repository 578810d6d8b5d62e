"""Model references: ``models/gpt.py:small`` names a model on a command line.

The file must define ``build(name, **overrides)`` and ``example_inputs(name, batch, **overrides)``; or the
part after the colon is itself a function that returns a model, with ``example_inputs`` beside it.
"""

import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from superscaler.errors import TraceError
from superscaler.ir.source_line import failing_line


def load_module(path: str) -> ModuleType:
    """Import a Python file by path.

    Raises:
        TraceError: There is no such file, or it fails while it is imported.
    """
    file = Path(path)
    if not file.is_file():
        raise TraceError(
            f"no Python file {path!r}", remedy="name a file and a model in it: models/gpt.py:tiny"
        )
    name = f"superscaler_user_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(file.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        broken = f"{path}:{error.lineno}" if isinstance(error, SyntaxError) else failing_line(error)
        raise TraceError(
            f"{path!r} cannot be imported: {type(error).__name__}: {error}",
            where=broken,
            remedy=f"make `python {path}` run without an error",
        ) from error
    finally:
        sys.path.pop(0)
    return module


def build_model(reference: str, batch: int, overrides: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """The model a reference names, and example inputs of `batch` samples.

    Raises:
        TraceError: The file lacks what is needed, or its functions refuse the name or an override.
    """
    path, _, name = reference.rpartition(":") if ":" in reference else (reference, "", "")
    module = load_module(path)
    build = getattr(module, name, None) if name else None
    arguments: tuple[str, ...] = ()
    if not inspect.isroutine(build):
        build, arguments = getattr(module, "build", None), (name,) if name else ()
    inputs = getattr(module, "example_inputs", None)
    if build is None or inputs is None:
        missing = "build(name)" if build is None else "example_inputs(name, batch)"
        raise TraceError(f"{path} does not define {missing}", remedy="see models/gpt.py for both functions")
    try:
        return build(*arguments, **overrides), inputs(*arguments, batch=batch, **overrides)
    except (TypeError, KeyError, ValueError) as error:
        raise TraceError(
            f"{reference} cannot be built: {error}",
            where=path,
            remedy="check the name after the colon and --set",
        ) from error


def load_script(reference: str) -> Any:
    """A plan script: ``examples/my_plan.py:my_plan``.

    Raises:
        TraceError: The file has no such function.
    """
    path, _, name = reference.partition(":")
    module = load_module(path)
    script = getattr(module, name, None) if name else None
    if not callable(script):
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        known = ", ".join(f"{path}:{key}" for key in functions)
        raise TraceError(
            f"{path} has no function {name!r}" if name else f"which plan script of {path} is not said",
            remedy=f"use one of {known}" if known else "define one in it: def my_plan(p): ...",
        )
    return script
