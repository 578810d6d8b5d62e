"""Every plan of the library on the models it is for: proved, equal to eager PyTorch, and how long its script is.

Per plan: the largest relative difference from eager PyTorch in the virtual cluster (two AdamW steps: loss, gradients,
parameters and optimizer states), and under torchrun on 2 to 4 gloo processes (three steps: losses and final
parameters). Parameters are in float64, and the goal is 1e-10; where a model computes in single precision inside, it is
ten times what one device differs by. Plans for more than four devices run in the virtual cluster alone.

``--write`` makes docs/plans.md; with names of plans, the other rows are those of the last run.
"""

import argparse
import copy
import inspect
import json
import tempfile
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import import_module
from math import inf
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.parity import torchrun
from benchmarks.plan_cases import CASES, SIZES, Case
from benchmarks.report import RESULTS, finish
from benchmarks.script_lines import script_lines, with_called
from superscaler import compiler
from superscaler.codegen.memory import peak_memory
from superscaler.ir.optimizers import AdamW
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster
from superscaler.planner.recipes import RECIPES, words
from superscaler.planner.recipes.table import LISTS, NUMBERS

BATCH, STEPS = 8, 3
TOLERANCE = 1e-10
SINGLE = 10
"""How many times the difference of one device is allowed to a model that is not in double precision."""
MOST_PROCESSES = 4
LONG = 50
"""Lines of a script that is shown with all it calls, at most."""
OPTIMIZER = AdamW(lr=1e-3, eps=1e-5)
"""Adam's usual eps of 1e-8 would blow up by 1e8 the rounding of gradients that are zero but for it."""
QUICK = ("dp=2", "tp=2,sp", "pp=2,schedule=zb-v,micro_batches=4", "dp=2,tp=2,pp=2,zero=1,micro_batches=2")
QUICK_UNDER_TORCHRUN = QUICK[:1]
PAGE = Path(__file__).parents[1] / "docs" / "plans.md"

Row = dict[str, Any]


def main() -> None:
    """Fill the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="four plans; ends within 60 s on 2 cores")
    parser.add_argument("--write", action="store_true", help="write docs/plans.md")
    parser.add_argument("plans", nargs="*", help="only these plan strings, or names of scripts")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    chosen = options.plans or (QUICK if options.quick else [case.name for case in CASES])
    rows = []
    for case in CASES:
        if case.name in chosen:
            start = time.perf_counter()
            rows.append(_row(case, not options.quick or case.name in QUICK_UNDER_TORCHRUN))
            print(f"{time.perf_counter() - start:5.1f} s  {rows[-1]}", flush=True)
    if options.plans:
        rows = _with_last(rows)
    if options.write:
        PAGE.write_text(page(rows))
    failed = [row for row in rows if not row["ok"]]
    runs = [row["torchrun"] for row in rows if row["torchrun"] is not None]
    double = [row["virtual"] for row in rows if row["goal"] <= TOLERANCE]
    finish(
        "plans", bool(rows) and not failed, rows, options.quick, plans=len(rows), failed=len(failed),
        under_torchrun=len(runs), worst_virtual=max(double, default=0.0), most_lines=max(row["script"] for row in rows),
    )  # fmt: skip


def _row(case: Case, with_processes: bool) -> Row:
    model, inputs, graph = _traced(case.model)
    plan = compiler.plan(graph, Cluster.local(case.num_devices), case.plan).verify()
    virtual = plan.compare_with_eager(model, inputs).largest
    goal = _goal(case.model)
    with tempfile.TemporaryDirectory() as folder:
        build = plan.save(Path(folder) / "build")
        sources = [path for path in build.glob("*.py") if path.name not in ("train.py", "run.py")]
        lines = [len(path.read_text().splitlines()) for path in sources]
        processes = case.num_devices if with_processes and case.num_devices <= MOST_PROCESSES else None
        real = _torchrun(case, Path(folder), build) if processes else None
    return {
        "plan": case.title, "model": case.model, "how": case.name, "devices": case.num_devices,
        "script": _length(case),
        "program": sum(lines), "files": len(lines),
        "peak_kB": max(peak_memory(program).total for program in plan.programs) / 1e3,
        "sent_kB": float(plan.communication().bytes_per_device) / 1e3,
        "virtual": virtual, "torchrun": real, "goal": goal, "ok": max(virtual, real or 0.0) <= goal,
    }  # fmt: skip


def _length(case: Case) -> int:
    return script_lines(case.scripts, only_own=not isinstance(case.plan, str))


@cache
def _traced(name: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor], Any]:
    torch.manual_seed(0)
    module = import_module(f"models.{name}")
    model = module.build("tiny", **SIZES[name]).double()
    inputs = {
        key: value.double() if value.is_floating_point() else value
        for key, value in module.example_inputs("tiny", batch=BATCH, **SIZES[name]).items()
    }
    return model, inputs, trace(model, inputs, optimizer=OPTIMIZER)


@cache
def _goal(name: str) -> float:
    model, inputs, graph = _traced(name)
    alone = compiler.plan(graph, Cluster.local(1), "none").compare_with_eager(model, inputs).largest
    return max(TOLERANCE, SINGLE * alone)


def _torchrun(case: Case, folder: Path, build: Path) -> float:
    """The largest difference of losses and final parameters; every step sees the same batch. Infinite: it failed."""
    inputs = _traced(case.model)[1]
    save_file(inputs, folder / "data.safetensors")
    try:
        losses, parameters = torchrun(build, case.num_devices, folder / "data.safetensors", STEPS)
    except RuntimeError as error:
        print(f"{case.name}: {error}", flush=True)
        return inf
    true_losses, true_parameters = _trained(case.model)
    assert parameters.keys() >= true_parameters.keys()
    pairs = [(parameters[name], value) for name, value in true_parameters.items()]
    return max(
        *(abs(ours - true) / abs(true) for ours, true in zip(losses, true_losses, strict=True)),
        *(((ours - true).norm() / true.norm()).item() for ours, true in pairs),
    )


@cache
def _trained(name: str) -> tuple[list[float], Mapping[str, torch.Tensor]]:
    """Losses and final parameters of plain PyTorch."""
    model, inputs, _ = _traced(name)
    model, losses = copy.deepcopy(model), []
    optimizer = torch.optim.AdamW(
        model.parameters(),
        OPTIMIZER.lr,
        (OPTIMIZER.beta1, OPTIMIZER.beta2),
        OPTIMIZER.eps,
        OPTIMIZER.weight_decay,
    )
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = model(**inputs)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, {key: value.detach() for key, value in model.named_parameters()}


def _with_last(rows: Sequence[Row]) -> list[Row]:
    """The rows of this run, and for the other plans those of the last."""
    path = RESULTS / "plans.json"
    last = json.loads(path.read_text())["rows"] if path.is_file() else []
    known = {(row["model"], row["how"]): row for row in [*last, *rows]}
    rows = [(case, known.get((case.model, case.name))) for case in CASES]
    return [{**row, "plan": case.title, "script": _length(case)} for case, row in rows if row]


# the page


def page(rows: Sequence[Row]) -> str:
    """The page of the documentation."""
    about = (__doc__ or "").partition("\n\n``--write``")[0].strip()
    return "\n".join(
        [
            "# Plans", "", about, "", "Written by `python -m benchmarks.plans --write`.",
            "", "## Words of plan strings", "", *_words_table(),
            "", "## Measured", "", *_measured(rows),
            "", "## Each plan", "", *_each(rows),
            "## The scripts", "", *_sources(),
        ]
    ).rstrip() + "\n"  # fmt: skip


def _words_table() -> list[str]:
    rows = [
        (f"`{row.word}`", f"`{row.script.__name__}`", row.about, row.source, str(script_lines([row.script])))
        for row in RECIPES
    ]
    rows += [(f"`{key}=N`", "", about, "", "") for key, about in NUMBERS.items()]
    rows += [(f"`{key}=N+N`", "", about, "", "") for key, about in LISTS.items()]
    return [
        f"A plan string is words joined by commas: {', '.join(f'`{word}`' for word in words())}, or `none`. In a plan "
        "script, recipes are `ss.recipes.NAME(p)`, and schedules `p.order(ss.schedules.NAME(micro_batches))`.",
        "",
        *_markdown(("word", "in Python", "what it does", "source", "lines"), rows),
    ]


def _measured(rows: Sequence[Row]) -> list[str]:
    header = (
        "plan", "model", "plan string or script", "devices", "script, lines", "program, lines", "files", "peak, kB",
        "sent per step, kB", "virtual cluster", "torchrun",
    )  # fmt: skip
    cells = [
        (
            row["plan"], row["model"], f"`{row['how']}`", str(row["devices"]), str(row["script"]), str(row["program"]),
            str(row["files"]), f"{row['peak_kB']:.0f}", f"{row['sent_kB']:.1f}", f"{row['virtual']:.0e}",
            "" if row["torchrun"] is None else f"{row['torchrun']:.0e}",
        )
        for row in rows
    ]  # fmt: skip
    return [
        "The script of a plan string is all functions of the recipes its words stand for, with the functions of the "
        "library of plans that these call (`planner/recipes/`, `planner/schedules/`), each counted once; of a "
        "script of one's own its own lines are counted. Lines are those with code: no blank ones, comments or "
        "docstrings. Programs are the generated files but for the entry. Memory, of the fullest device, and bytes, of "
        "the device that sends most, are what the plan predicts, of tiny models in float64.",
        "",
        *_markdown(header, cells),
    ]  # fmt: skip


def _each(rows: Sequence[Row]) -> Iterable[str]:
    for case in CASES:
        yield f"**{case.title}**, {case.model}: `{case.name}`. {case.about}"
        yield ""
        if not isinstance(case.plan, str):
            yield from ("```python", inspect.getsource(case.plan).rstrip(), "```", "")


def _sources() -> Iterable[str]:
    """The scripts in full, with what they call where it is short, each function once."""
    yield f"With the functions they call where these are no more than {LONG} lines together, each shown once."
    yield ""
    shown: list[Any] = []
    for row in RECIPES:
        whole = with_called([row.script]) if script_lines([row.script]) <= LONG else [row.script]
        sources = [inspect.getsource(one).rstrip() for one in whole if one not in shown]
        shown += whole
        yield from (f"### `{row.word}`", "", "```python", "\n\n\n".join(sources), "```", "")


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(header)} |", f"| {' | '.join(['---'] * len(header))} |"]
    return lines + [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]


if __name__ == "__main__":
    main()
