"""Custom operators: import what defines a user's torch operator before a generated program calls it."""

import importlib
import importlib.util
import sys
from pathlib import Path

import torch

from superscaler.errors import BuildError


def define(kind: str, by: str, beside: str) -> None:
    """Make sure that ``torch.ops.<kind>`` exists.

    Args:
        kind: The operator, ``mylib.scale``.
        by: What defines it: a file of the build (``operators_mylib.py``), or the name of an installed module.
        beside: A file in the build folder.

    Raises:
        BuildError: It cannot be imported, or does not define the operator.
    """
    if _exists(kind):
        return
    try:
        if by.endswith(".py"):
            _import_file(Path(beside).resolve().parent / by)
        else:
            importlib.import_module(by)
    except Exception as error:
        raise BuildError(
            f"{by}, which defines torch.ops.{kind}, cannot be imported: {type(error).__name__}: {error}",
            remedy="install what it imports on every machine; it may import no file that lies beside it",
        ) from error
    if not _exists(kind):
        raise BuildError(
            f"{by} was imported and does not define torch.ops.{kind}", remedy="compile the build again"
        )


def _import_file(path: Path) -> None:
    name = f"superscaler_{path.stem}"
    if name in sys.modules:
        return
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        specification.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _exists(kind: str) -> bool:
    namespace, name, *_ = kind.split(".")
    return hasattr(getattr(torch.ops, namespace), name)
