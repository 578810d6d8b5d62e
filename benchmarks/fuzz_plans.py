"""Random plans: each is refused with a reason, or verified and equal to eager PyTorch on the virtual cluster.

A plan follows from its seed: ``--only SEED`` shows one plan again. What may come out:

* refused: the planner says what is wrong and what to do, also of a schedule with which rows would wait for ever;
* equal: proved, the source compiles, and two steps in float64 differ from eager PyTorch by rounding alone;
* anything else is a fault: another exception, an accepted plan that cannot be proved, a difference.
"""

import argparse
import inspect
import os
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter

import torch

from benchmarks.random_plans import RandomPlan, random_plan, subject
from benchmarks.report import finish
from superscaler import compiler
from superscaler.codegen.eager import Eager
from superscaler.codegen.emit import emit
from superscaler.codegen.pieces import relative_difference
from superscaler.compiler import CompiledPlan
from superscaler.errors import PlanError, SuperscalerError, VerificationError
from superscaler.planner.cluster import Cluster
from superscaler.runtime.loaded import load

TOLERANCE = 1e-9
"""Largest relative difference: sums of a few hundred numbers in float64, in another order, through two steps."""
COUNT, QUICK_COUNT, SEED = 2000, 40, 0
STEPS = 2
"""Training steps of every tenth plan; one of the others, which shows all gradients, parameters and states too."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one plan."""

    seed: int
    model: str
    devices: int
    verdict: str
    """``refused``, ``equal`` or ``fault``."""
    reason: str
    """Where a refusal was decided; what a fault is."""
    difference: float
    stages: int
    seconds: float


def main() -> None:
    """Judge many plans, or show one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller run that ends within 60 s on 2 cores")
    parser.add_argument(
        "--seed", type=int, default=SEED, help="seed of the first plan; each next is one more"
    )
    parser.add_argument("--count", type=int, default=0, help="how many plans")
    parser.add_argument("--only", type=int, default=None, metavar="SEED", help="show the plan of one seed")
    options = parser.parse_args()
    if options.only is not None:
        show(options.only)
        return
    count = options.count or (QUICK_COUNT if options.quick else COUNT)
    start = perf_counter()
    outcomes = judge_all(range(options.seed, options.seed + count))
    verdicts = Counter(outcome.verdict for outcome in outcomes)
    reasons = Counter(outcome.reason for outcome in outcomes if outcome.verdict == "refused")
    rows = [{"refused by": reason, "plans": number} for reason, number in reasons.most_common()]
    finish(
        "fuzz_plans",
        not verdicts["fault"],
        rows,
        options.quick,
        plans=count,
        seed=options.seed,
        equal=verdicts["equal"],
        refused=verdicts["refused"],
        faults=verdicts["fault"],
        largest=max((o.difference for o in outcomes), default=0.0),
        seconds=perf_counter() - start,
    )


def show(seed: int) -> None:
    """Print one plan's script and what comes of it, with the whole message."""
    plan = random_plan(seed)
    print(f"# seed {seed}: {plan.model} on {plan.devices} devices\n{plan.text}")
    try:
        compiled = examine(plan)
        print(compiled)
        print(compare(plan, compiled))
    except SuperscalerError as error:
        print(f"{type(error).__name__}: {error}")
    print(judge(plan))


def judge_all(seeds: Iterable[int]) -> list[Outcome]:
    """Judge plans on all cores, in order of seeds; a line for each."""
    seeds, workers = list(seeds), os.cpu_count() or 1
    with ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        outcomes = []
        for outcome in pool.map(_judge_seed, seeds, chunksize=4):
            outcomes.append(outcome)
            last = f"{outcome.difference:.1e}" if outcome.verdict == "equal" else outcome.reason.strip()
            print(
                f"seed {outcome.seed}: {outcome.model} on {outcome.devices} devices: {outcome.verdict} {last}"
            )
            if outcome.verdict == "fault":
                print(_indented(random_plan(outcome.seed).text), flush=True)
        return outcomes


def _judge_seed(seed: int) -> Outcome:
    return judge(random_plan(seed))


def judge(plan: RandomPlan) -> Outcome:
    """What comes of a plan."""
    start = perf_counter()
    difference, stages = 0.0, 0
    try:
        compiled = examine(plan)
        stages = len(compiled.materialized.stages)
        difference = compare(plan, compiled)
        verdict, reason = "equal", ""
        if difference > TOLERANCE:
            verdict, reason = "fault", f"differs from eager PyTorch by {difference:.1e}"
    except PlanError as error:
        verdict, reason = "refused", _place(error)
        if not (error.what and error.remedy):
            verdict, reason = "fault", f"a refusal without a remedy: {error}"
    except VerificationError as error:
        verdict, reason = "fault", f"accepted, then {error}"
    except Exception as error:  # whatever else comes is what this looks for
        verdict, reason = "fault", "".join(traceback.format_exception(error)[-4:])
    return Outcome(
        plan.seed, plan.model, plan.devices, verdict, reason, difference, stages, perf_counter() - start
    )


def examine(plan: RandomPlan) -> CompiledPlan:
    """Plan, prove, and compile the source of every program.

    Raises:
        SuperscalerError: The plan is refused.
    """
    compiled = compiler.plan(subject(plan.model).graph, Cluster.local(plan.devices), plan).verify()
    for program in compiled.programs:
        compile(emit(compiled, program), f"row{program.row}.py", "exec")
    str(compiled), str(compiled.communication())
    return compiled


def compare(plan: RandomPlan, compiled: CompiledPlan) -> float:
    """The largest difference from eager PyTorch, of the virtual cluster; of the source too, on one device."""
    given = subject(plan.model)
    difference = compiled.compare_with_eager(
        given.model, given.inputs, steps=STEPS if plan.seed % 10 == 0 else 1
    ).largest
    if compiled.num_devices == 1:
        difference = max(difference, _source_difference(plan, compiled))
    return difference


def _source_difference(plan: RandomPlan, compiled: CompiledPlan) -> float:
    """Train with the source itself, in this process."""
    given = subject(plan.model)
    eager = Eager(compiled.graph, given.model, None)
    call = inspect.signature(given.model.forward).bind(**given.inputs)
    difference = 0.0
    with tempfile.TemporaryDirectory() as folder:
        program = load(compiled.save(Path(folder) / "build"), "cpu")
        for step in range(1, STEPS + 1):
            loss = program(given.inputs)
            truth = eager.step(call, given.inputs, step)
            difference = max(difference, relative_difference(loss, truth["loss"][compiled.graph.outputs[0]]))
            for name, value in program.weights.items():
                difference = max(difference, relative_difference(value, truth["parameters"][name]))
    return difference


def _place(error: SuperscalerError) -> str:
    """The function of the package that refused."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if "/superscaler/" in frame.filename
    ]
    return f"{Path(frames[-1].filename).stem}.{frames[-1].name}" if frames else "the script"


def _indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())


if __name__ == "__main__":
    main()
