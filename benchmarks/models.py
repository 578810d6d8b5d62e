"""Which models can be trained under which plans: unmodified `transformers` architectures and those of ``models/``.

Every cell runs in the virtual cluster in float64 and is compared with eager PyTorch. In training: two AdamW steps, with
their loss, gradients, updated parameters and optimizer states. In inference: one build, traced with sizes that vary,
runs three sizes of batches and sequences. A cell holds the largest relative difference, or says why there is none.
Goal: at least 20 architectures, at least 90 % of cells within 1e-10, in both. ``--write`` makes docs/models.md.
"""

import argparse
import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.architectures import build, inference_inputs, names, varying_sizes
from benchmarks.report import finish
from superscaler import compiler
from superscaler.errors import SuperscalerError
from superscaler.ir.graph import Graph
from superscaler.ir.optimizers import AdamW
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import parse_plan

PLANS = ("dp=2", "tp=2", "pp=2", "dp=2,tp=2")
SIZES = ((4, 8), (6, 5), (2, 11))
"""Samples and length of the texts a build for inference runs; it is traced for the first."""
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
    chosen = options.names or (QUICK if options.quick else names())
    tables = {"training": _table(chosen, _training), "inference": _table(chosen, _inference)}
    counts = {}
    is_enough = len(chosen) >= (len(QUICK) if options.quick else 20)
    for title, rows in tables.items():
        cells = [row[plan] for row in rows for plan in ("traces", *PLANS)]
        counts |= {f"{title}_cells": len(cells), f"{title}_passed": sum(map(_passed, cells))}
        is_enough = is_enough and counts[f"{title}_passed"] >= 0.9 * len(cells)
    if options.write:
        PAGE.write_text(_page(tables))
    shown = [{"of": title, **_shown(row)} for title, rows in tables.items() for row in rows]
    finish("models", is_enough, shown, options.quick, architectures=len(chosen), **counts)


def _be_quiet() -> None:
    import transformers

    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)


Row = dict[str, Any]
Compare = Callable[[str], float]
"""From a plan to the largest difference."""


def _table(chosen: Sequence[str], prepare: Callable[[str], tuple[Graph, Compare]]) -> list[Row]:
    """A row per architecture: per plan the largest difference, or the error."""
    rows = []
    for name in chosen:
        start = time.perf_counter()
        row: Row = {"architecture": name}
        try:
            graph, compare = prepare(name)
        except SuperscalerError as error:
            row |= {"operators": 0, "traces": error, **dict.fromkeys(PLANS, error)}
        else:
            row |= {"operators": len(graph.operators), "traces": 0.0}
            row |= {plan: _difference(compare, plan) for plan in PLANS}
        rows.append(row)
        print(f"{name}: {time.perf_counter() - start:.1f} s  {_words(row)}", flush=True)
    return rows


def _training(name: str) -> tuple[Graph, Compare]:
    model, inputs = build(name)
    graph = trace(model, inputs, optimizer=OPTIMIZER)

    def compare(plan: str) -> float:
        return _planned(graph, plan).compare_with_eager(model, inputs).largest

    return graph, compare


def _inference(name: str) -> tuple[Graph, Compare]:
    model = build(name)[0].eval()
    inputs = [inference_inputs(name, *size) for size in SIZES]
    graph = trace(model, inputs[0], dynamic=varying_sizes(name, inputs[0]))

    def compare(plan: str) -> float:
        made = _planned(graph, plan)
        return max(made.compare_with_eager(model, given).largest for given in inputs)

    return graph, compare


def _planned(graph: Graph, plan: str) -> compiler.CompiledPlan:
    return compiler.plan(graph, Cluster.local(parse_plan(plan).num_devices), plan).verify()


def _difference(compare: Compare, plan: str) -> float | SuperscalerError:
    try:
        return compare(plan)
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


def _page(tables: Mapping[str, list[Row]]) -> str:
    """The page of the documentation."""
    header = ("architecture", "operators", "traces", *PLANS)
    about = (__doc__ or "").strip().replace("``--write`` makes docs/models.md.", "").strip()
    lines = ["# Models", "", about, "", "Written by `python -m benchmarks.models --write`."]
    for title, rows in tables.items():
        lines += ["", f"## {title.capitalize()}", ""]
        lines += [f"| {' | '.join(header)} |", f"| {' | '.join(['---'] * len(header))} |"]
        lines += [f"| {' | '.join(map(str, _shown(row).values()))} |" for row in rows]
        faults = [(row, plan) for row in rows for plan in PLANS if not _passed(row[plan])]
        lines += ["", "Where there is no figure:", ""] if faults else []
        lines += [
            f"* {row['architecture']}, {plan}: {_reason(row[plan]).splitlines()[0]}" for row, plan in faults
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
