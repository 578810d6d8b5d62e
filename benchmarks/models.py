"""Which models can be trained under which plans: unmodified `transformers` architectures and those of ``models/``.

Every cell runs in the virtual cluster in float64: two AdamW steps, whose loss, gradients, updated parameters and
optimizer states are compared with eager PyTorch. A cell holds the largest relative difference, or says why there is
none. Goal: at least 20 architectures, at least 90 % of cells within 1e-10. ``--write`` makes docs/models.md.
"""

import argparse
import logging
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.architectures import build, names
from benchmarks.report import finish
from superscaler import compiler
from superscaler.errors import SuperscalerError
from superscaler.ir.graph import Graph
from superscaler.ir.optimizers import AdamW
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import parse_plan

PLANS = ("dp=2", "tp=2", "pp=2", "dp=2,tp=2")
TOLERANCE = 1e-10
OPTIMIZER = AdamW(lr=1e-3, eps=1e-5)
"""Adam's usual eps of 1e-8 would blow up by 1e8 the rounding of gradients that are zero but for it."""
QUICK = ("GPT-2", "Llama", "BERT", "ViT", "ResNet")
PAGE = Path(__file__).parents[1] / "docs" / "models.md"


def main() -> None:
    """Fill the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="five architectures; ends within 60 s on 2 cores"
    )
    parser.add_argument("--write", action="store_true", help="write docs/models.md")
    parser.add_argument("names", nargs="*", help="only these architectures")
    options = parser.parse_args()
    _be_quiet()
    rows = []
    for name in options.names or (QUICK if options.quick else names()):
        start = time.perf_counter()
        rows.append(_row(name))
        print(f"{name}: {time.perf_counter() - start:.1f} s  {_words(rows[-1])}", flush=True)
    cells = [row[plan] for row in rows for plan in ("traces", *PLANS)]
    passed = sum(_passed(cell) for cell in cells)
    enough = len(rows) >= (len(QUICK) if options.quick else 20)
    if options.write:
        PAGE.write_text(_page(rows))
    finish(
        "models", enough and passed >= 0.9 * len(cells), [_shown(row) for row in rows], options.quick,
        architectures=len(rows), cells=len(cells), passed=passed,
    )  # fmt: skip


def _be_quiet() -> None:
    import transformers

    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)


def _row(name: str) -> dict[str, Any]:
    """One architecture under every plan: per plan the largest difference, or the error."""
    model, inputs = build(name)
    row: dict[str, Any] = {"architecture": name}
    try:
        graph = trace(model, inputs, optimizer=OPTIMIZER)
    except SuperscalerError as error:
        return row | {"operators": 0, "traces": error, **dict.fromkeys(PLANS, error)}
    row |= {"operators": len(graph.operators), "traces": 0.0}
    return row | {plan: _difference(graph, model, inputs, plan) for plan in PLANS}


def _difference(
    graph: Graph, model: torch.nn.Module, inputs: Mapping[str, Any], plan: str
) -> float | SuperscalerError:
    try:
        made = compiler.plan(graph, Cluster.local(parse_plan(plan).num_devices), plan).verify()
        return made.compare_with_eager(model, inputs).largest
    except SuperscalerError as error:
        return error


def _passed(cell: float | SuperscalerError) -> bool:
    return isinstance(cell, float) and cell <= TOLERANCE


def _words(row: Mapping[str, Any]) -> str:
    return "; ".join(f"{plan} {_reason(row[plan])}" for plan in ("traces", *PLANS) if not _passed(row[plan]))


def _reason(cell: float | SuperscalerError) -> str:
    return f"differs by {cell:.1e}" if isinstance(cell, float) else f"{type(cell).__name__}: {cell}"


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    shown = {"architecture": row["architecture"], "operators": row["operators"]}
    shown["traces"] = "yes" if _passed(row["traces"]) else "no"
    for plan in PLANS:
        cell = row[plan]
        shown[plan] = f"{cell:.0e}" if isinstance(cell, float) else "no"
    return shown


def _page(rows: list[dict[str, Any]]) -> str:
    """The page of the documentation."""
    header = ("architecture", "operators", "traces", *PLANS)
    lines = [
        "# Models",
        "",
        (__doc__ or "").strip().replace("``--write`` makes docs/models.md.", "").strip(),
        "",
    ]
    lines += ["Written by `python -m benchmarks.models --write`.", ""]
    lines += [f"| {' | '.join(header)} |", f"| {' | '.join(['---'] * len(header))} |"]
    lines += [f"| {' | '.join(str(cell) for cell in _shown(row).values())} |" for row in rows]
    faults = [
        (row["architecture"], plan, row[plan]) for row in rows for plan in PLANS if not _passed(row[plan])
    ]
    if faults:
        lines += ["", "Where there is no figure:", ""]
        lines += [f"* {name}, {plan}: {_reason(cell).splitlines()[0]}" for name, plan, cell in faults]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
