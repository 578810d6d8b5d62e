"""Operator files: what a build brings along so that its programs can call a user's operators."""

import ast
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from superscaler.errors import BuildError
from superscaler.ir.custom_operator import Definition, definition, is_custom
from superscaler.ir.graph import Graph


def defined_by(graph: Graph) -> dict[str, str]:
    """Kind of a user's operator -> the file of the build, or the installed module, that defines it.

    Raises:
        BuildError: An operator is not defined in a Python file that can be imported on its own.
    """
    where = _definitions(graph)
    names = _names(found.file for found in where.values() if not found.is_installed)
    return {kind: found.module if found.is_installed else names[found.file] for kind, found in where.items()}


def operator_sources(graph: Graph) -> dict[str, str]:
    """Name in the build -> source of every file that defines a user's operator."""
    files = {found.file for found in _definitions(graph).values() if not found.is_installed}
    return {name: file.read_text(encoding="utf-8") for file, name in _names(files).items()}


def _definitions(graph: Graph) -> dict[str, Definition]:
    kinds = sorted({operator.kind for operator in graph.operators if is_custom(operator.kind)})
    return {kind: _importable(kind) for kind in kinds}


def _names(files: Iterable[Path]) -> Mapping[Path, str]:
    names: dict[Path, str] = {}
    stems: Counter[str] = Counter()
    for file in sorted(set(files)):
        stems[file.stem] += 1
        number = f"_{stems[file.stem]}" if stems[file.stem] > 1 else ""
        names[file] = f"operators_{file.stem}{number}.py"
    return names


def _importable(kind: str) -> Definition:
    found = definition(kind)
    if found is None:
        raise BuildError(
            f"the programs call torch.ops.{kind}, and no Python file is known to define it",
            remedy="define it with torch.library.custom_op, or its torch.library.register_fake, in a file",
        )
    if found.is_installed:
        return found
    tree = ast.parse(found.file.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    if imports:
        raise BuildError(
            f"{found.file.name}, which defines torch.ops.{kind}, imports from its own package",
            where=f"{found.file}:{imports[0].lineno}",
            remedy="install the package, or define the operator in a file that stands alone: builds take it along",
        )
    if found.module == "__main__" and not any(map(_is_main_guard, tree.body)):
        raise BuildError(
            f"{found.file.name} defines torch.ops.{kind}, and is the program that compiles",
            remedy='define the operator in a file of its own, or put what compiles under `if __name__ == "__main__":`',
        )
    return found


def _is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "__name__" in ast.dump(node.test)
