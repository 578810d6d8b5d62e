"""Custom operators: the torch operator behind a kind, and the user's file that defines it."""

import hashlib
import inspect
import sys
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch._library.custom_ops import OPDEFS
from torch._library.simple_registry import singleton as registry

_OF_TORCH = {"aten", "prims", "prim", "quantized", "mkldnn"}


@dataclass(frozen=True, slots=True)
class Definition:
    """Where a user's operator is defined."""

    file: Path
    module: str
    """The name under which it was imported; ``__main__`` for the program that runs."""

    @property
    def is_installed(self) -> bool:
        """Whether the file is part of an installed package, which other machines can install too."""
        roots = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
        return any(self.file.is_relative_to(root) for root in roots)


def is_custom(kind: str) -> bool:
    """Whether neither torch nor this package brings operators of a kind."""
    namespace, dot, _ = kind.partition(".")
    return bool(dot) and namespace not in _OF_TORCH


def overload(kind: str) -> Any:
    """The torch operator of a kind: ``torch.ops.mylib.scale.default``."""
    namespace, name, *rest = kind.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), name), rest[0] if rest else "default")


def definition(kind: str) -> Definition | None:
    """The Python file that defines an operator or how it is traced; None where that is not Python."""
    namespace, name, *_ = kind.split(".")
    qualified = f"{namespace}::{name}"
    if qualified in OPDEFS:
        file = inspect.getsourcefile(OPDEFS[qualified]._init_fn)
    else:
        kernel = registry.find(qualified).fake_impl.kernel
        file = kernel.source.rpartition(":")[0] if kernel else None
    if not file or not Path(file).is_file():
        return None
    path = Path(file).resolve()
    return Definition(path, _module_of(path))


def signature(kind: str) -> tuple[str, str]:
    """The operator's schema, and a hash of the file that defines it."""
    where = definition(kind) if is_custom(kind) else None
    content = hashlib.sha256(where.file.read_bytes()).hexdigest() if where else ""
    return str(overload(kind)._schema), content


@cache
def _module_of(path: Path) -> str:
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and Path(file).resolve() == path:
            return name
    return ""
