"""Does verification catch what goes wrong? Every communication instruction deleted, misdirected, and moved.

A mutant is harmful if the virtual cluster hangs, fails, or leaves any output, parameter or optimizer state
off by more than 1e-12 relative. Goal: every harmful mutant is rejected by ``verify_programs``, and every plan
accepted.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from benchmarks.mutants import Mutant, mutants
from benchmarks.report import finish, parse_arguments
from models import gpt
from superscaler.codegen.comparison import initial_state
from superscaler.codegen.lower import lower
from superscaler.codegen.offload import offload
from superscaler.codegen.overlap import overlap
from superscaler.codegen.pieces import relative_difference
from superscaler.codegen.program import Program
from superscaler.codegen.verify import verify_programs
from superscaler.codegen.virtual import StepResult, run_step
from superscaler.errors import VerificationError
from superscaler.ir.graph import Graph
from superscaler.ir.interpret import interpret
from superscaler.ir.optimizers import AdamW
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster
from superscaler.planner.plan import Plan, make_plan
from superscaler.planner.planner import Planner
from superscaler.planner.recipes import data_parallel, recipe
from superscaler.planner.schedules import one_f_one_b

TOLERANCE = 1e-12
SIZES = {"layers": 2, "width": 16, "heads": 4, "seq": 8, "vocab": 32}


def uneven_stages(p: Planner) -> None:
    """Two stages over meshes of different shapes, so that activations cross in exchanges."""
    first, second = p.split("h.*", 2)
    p.assign(first, p.mesh(range(2), dp=2))
    p.assign(second, p.mesh(range(2, 6), dp=4))
    data_parallel(p)
    p.order(one_f_one_b(2))


PLANS: dict[str, tuple[int, Callable[[Planner], None]]] = {
    "dp=2": (2, recipe("dp=2")),
    "tp=2": (2, recipe("tp=2")),
    "pp=2": (2, recipe("pp=2")),
    "dp=2,zero=1": (2, recipe("dp=2,zero=1")),
    "dp=2,zero=3": (2, recipe("dp=2,zero=3")),
    "dp=2,zero=1,offload=optimizer": (2, recipe("dp=2,zero=1,offload=optimizer")),
    "pp=2,schedule=zb-h1,micro_batches=2,offload=activations": (
        2,
        recipe("pp=2,schedule=zb-h1,micro_batches=2,offload=activations"),
    ),
    "tp=2,offload=parameters": (2, recipe("tp=2,offload=parameters")),
    "dp=2,zero=2,micro_batches=2": (2, recipe("dp=2,zero=2,micro_batches=2")),
    "dp=2,tp=2": (4, recipe("dp=2,tp=2")),
    "tp=2,sp": (2, recipe("tp=2,sp")),
    "dp=2,tp=2,pp=2,schedule=1f1b,micro_batches=4": (
        8,
        recipe("dp=2,tp=2,pp=2,schedule=1f1b,micro_batches=4"),
    ),
    "script: dp=2 then dp=4": (6, uneven_stages),
    "pp=2,schedule=zb-h1,micro_batches=2": (2, recipe("pp=2,schedule=zb-h1,micro_batches=2")),
    "pp=2,schedule=bidirectional,micro_batches=2": (2, recipe("pp=2,schedule=bidirectional,micro_batches=2")),
    "pp=2,schedule=interlaced,micro_batches=2": (2, recipe("pp=2,schedule=interlaced,micro_batches=2")),
    "pp=2,schedule=zb-v,micro_batches=2": (2, recipe("pp=2,schedule=zb-v,micro_batches=2")),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One plan with its true results."""

    plan: Plan
    programs: tuple[Program, ...]
    state: Mapping[str, torch.Tensor]
    batch: Mapping[str, torch.Tensor]
    truth: StepResult


def main() -> None:
    """Mutate every plan."""
    options = parse_arguments(__doc__ or "")
    torch.set_num_threads(1)
    rows = [mutate(name, sample=30 if options.quick else None) for name in PLANS]
    totals = {
        key: sum(row[key] for row in rows) for key in ("mutants", "harmful", "rejected", "missed", "strict")
    }
    failed = totals["missed"] + sum(row["crashes"] for row in rows) + sum(not row["accepted"] for row in rows)
    finish("mutation", not failed, rows, options.quick, plans=len(rows), **totals)


def mutate(name: str, sample: int | None = None) -> dict[str, Any]:
    """Try the mutants of one plan, or a fixed sample of them; a row of the table."""
    start = perf_counter()
    case = make_case(name)
    found = list(mutants(case.programs, case.plan.placed.axes))
    if sample is not None and sample < len(found):
        found = random.Random(0).sample(found, sample)
    verdicts = [
        (mutant, is_harmful(case, mutant.programs), rejects(case.plan, mutant.programs)) for mutant in found
    ]
    missed = [mutant.what for mutant, harmful, rejected in verdicts if harmful and rejected is False]
    return {
        "plan": name,
        "accepted": not rejects(case.plan, case.programs),
        "mutants": len(found),
        **{change: sum(m.change == change for m in found) for change in ("delete", "misdirect", "reorder")},
        "harmful": sum(harmful for _, harmful, _ in verdicts),
        "rejected": sum(rejected is not False for _, _, rejected in verdicts),
        "missed": len(missed),
        "strict": sum(not harmful and rejected is not False for _, harmful, rejected in verdicts),
        "crashes": sum(rejected is None for _, _, rejected in verdicts),
        "seconds": perf_counter() - start,
        "examples": "; ".join(missed[:3]),
    }


def make_case(name: str) -> Case:
    """Plan the tiny GPT in float64 and take its true results from the graph on one device."""
    devices, script = PLANS[name]
    torch.manual_seed(0)
    sizes = SIZES | ({"layers": 4} if "zb-v" in name else {})
    model = gpt.build("tiny", **sizes).double()
    batch = gpt.example_inputs("tiny", batch=8, **sizes)
    plan = make_plan(trace(model, batch, optimizer=AdamW()), Cluster.local(devices), script, name)
    programs = offload(plan, overlap(plan, lower(plan)))
    # nothing is 0 or 1, so that no summand and no factor goes unnoticed
    state = {
        key: value + 0.1 * torch.rand_like(value) for key, value in initial_state(plan.graph, model).items()
    }
    truth = run_step(programs, state, batch, 1)
    assert _difference(truth, _interpreted(plan.graph, state, batch)) < TOLERANCE, name
    return Case(plan, programs, state, batch, truth)


def _interpreted(
    graph: Graph, state: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]
) -> StepResult:
    results = interpret(graph, {**state, **batch, "step": 1})
    new = {
        name: results[graph.updates[name]] if name in graph.updates else value
        for name, value in state.items()
    }
    return StepResult({name: results[name] for name in graph.outputs}, new, {}, 0.0)


def is_harmful(case: Case, programs: Sequence[Program]) -> bool:
    """Whether a mutant hangs, fails, or computes something else."""
    try:
        result = run_step(programs, case.state, case.batch, 1)
    except VerificationError:
        return True
    return _difference(result, case.truth) > TOLERANCE


def _difference(result: StepResult, truth: StepResult) -> float:
    pairs = [(result.outputs[name], value) for name, value in truth.outputs.items()]
    pairs += [(result.state[name], value) for name, value in truth.state.items()]
    return max([result.difference, *(relative_difference(value, true) for value, true in pairs)])


def rejects(plan: Plan, programs: Sequence[Program]) -> bool | None:
    """Whether verification rejects; None if it fails otherwise, which counts as a fault of its own."""
    try:
        verify_programs(plan, programs)
    except VerificationError:
        return True
    except Exception as error:  # a crash of the verifier is a result too
        print(f"verification crashed: {type(error).__name__}: {error}")
        return None
    return False


__all__ = ["PLANS", "Case", "Mutant", "is_harmful", "make_case", "mutate", "rejects"]

if __name__ == "__main__":
    main()
