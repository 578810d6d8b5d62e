"""Build: write a plan as a folder that ``torchrun`` runs: a source file per row, the plan file, initial weights."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from superscaler.codegen.emit import emit
from superscaler.codegen.operator_files import operator_sources
from superscaler.codegen.plan_file import FORMAT, describe_build, entry_name, module_name
from superscaler.codegen.program import Program
from superscaler.errors import BuildError
from superscaler.ir.graph import Graph
from superscaler.ir.tensor import Role
from superscaler.planner.plan import Plan
from superscaler.planner.show import format_plan

WEIGHTS = "weights.safetensors"
PLAN = "plan.json"


def write_build(
    plan: Plan,
    programs: Sequence[Program],
    directory: Path,
    model_reference: str = "",
    notes: Mapping[str, str] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write a build folder, all of it or nothing; an older build of the same name is replaced.

    Args:
        plan: What was planned.
        programs: Its programs, one per row.
        directory: The folder.
        model_reference: How the user named the model (``models/gpt.py:tiny``), for the record.
        notes: Name -> text of further files, for people; no program reads them.
        facts: Further entries of ``plan.json``.

    Raises:
        BuildError: The folder exists and is no build, or cannot be written.
    """
    directory = Path(directory)
    check_replaceable(directory)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        try:
            fresh.chmod(0o755)
            _write_files(plan, programs, fresh, model_reference, notes or {}, facts or {})
            _replace(directory, fresh)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    except OSError as error:
        raise BuildError(
            f"cannot write the build {directory}: {error}",
            remedy="choose a folder that can be written with -o",
        ) from error
    return directory


PAGE = "plan.txt"
"""The plan on a page, for people; no program reads it."""


def _write_files(
    plan: Plan, programs: Sequence[Program], folder: Path, reference: str, notes: Mapping[str, str],
    facts: Mapping[str, Any],
) -> None:  # fmt: skip
    sources = {f"{module_name(program)}.py": emit(plan, program) for program in programs}
    entry = entry_name(plan)
    sources[entry] = _entry(plan, entry)
    sources |= operator_sources(plan.graph)
    for name, text in sources.items():
        (folder / name).write_text(text, encoding="utf-8")
    for name, text in {PAGE: format_plan(plan) + "\n", **notes}.items():
        (folder / name).write_text(text, encoding="utf-8")
    names = list(sources)
    values = initial_values(plan.graph)
    if values:
        from safetensors.torch import save_file

        save_file(values, folder / WEIGHTS)
        names.append(WEIGHTS)
    hashes = {name: _hash(folder / name) for name in names}
    described = {**describe_build(plan, programs, hashes, reference), **facts}
    (folder / PLAN).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


def initial_values(graph: Graph) -> dict[str, Any]:
    """Parameters and buffers the model brought values for, each with memory of its own."""
    values = {}
    for name, value in graph.values.items():
        if name in graph.tensors and graph.tensors[name].role in (Role.PARAMETER, Role.BUFFER):
            values[name] = value.detach().clone().contiguous()
    return values


def _entry(plan: Plan, entry: str) -> str:
    module = {"train.py": "launch", "run.py": "infer", "serve.py": "serving.launch"}[entry]
    return (
        f'"""Run with: torchrun --nproc-per-node {plan.num_devices} {entry}; options: --help."""\n\n'
        f"from superscaler.runtime.{module} import main\n\n"
        'if __name__ == "__main__":\n    main(__file__)\n'
    )


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_replaceable(directory: Path) -> None:
    """Refuse to replace anything but an empty folder or a build.

    Raises:
        BuildError: The folder holds something else.
    """
    if not directory.exists() and not directory.is_symlink():
        return
    if directory.is_dir():
        if not any(directory.iterdir()):
            return
        if _is_build(_read_plan(directory)):
            return
    raise BuildError(
        f"{directory} exists and is no build of superscaler",
        remedy="choose another folder with -o, or remove this one",
    )


def _read_plan(directory: Path) -> Mapping[str, Any] | None:
    try:
        return json.loads((directory / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _is_build(plan: Mapping[str, Any] | None) -> bool:
    return (
        isinstance(plan, dict)
        and isinstance(plan.get("format"), int)
        and plan["format"] <= FORMAT
        and "stages" in plan
    )


def _replace(directory: Path, fresh: Path) -> None:
    """Put the new folder in place of the old one; until then the old one is whole."""
    if not directory.exists():
        fresh.rename(directory)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    directory.rename(old / "old")
    try:
        fresh.rename(directory)
    except OSError:
        (old / "old").rename(directory)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
