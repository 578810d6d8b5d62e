"""The whole story on one page: trace, plan, lower, verify, emit."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from superscaler.codegen.build import write_build
from superscaler.codegen.comparison import Comparison, compare_programs_with_eager
from superscaler.codegen.emit import emit
from superscaler.codegen.make_programs import make_programs
from superscaler.codegen.plan_file import module_name
from superscaler.codegen.program import Program
from superscaler.codegen.verify import verify_programs
from superscaler.ir.dynamic import Dynamic
from superscaler.ir.graph import Graph
from superscaler.ir.loss_scale import LossScale
from superscaler.ir.optimizers import Optimizer
from superscaler.ir.trace import trace
from superscaler.planner.cluster import Cluster
from superscaler.planner.float8 import check_float8
from superscaler.planner.plan import Plan, make_plan
from superscaler.planner.planner import Planner
from superscaler.planner.prices import Prices
from superscaler.planner.recipes import recipe
from superscaler.planner.show import format_plan
from superscaler.report.describe import describe
from superscaler.report.page import DESCRIPTION, make_page
from superscaler.search.auto import Report, find_plan
from superscaler.search.candidate import auto_space
from superscaler.simulator.simulation import Simulation, simulate

PlanScript = Callable[[Planner], None]


@dataclass(frozen=True)
class CompiledPlan(Plan):
    """A Plan with its programs: it can be verified, compared with eager PyTorch, and written as source."""

    report: Report | None = field(default=None, compare=False, repr=False)
    """How it was found, where it was searched for."""

    @cached_property
    def programs(self) -> tuple[Program, ...]:
        """One program per row."""
        return make_programs(self)

    def verify(self) -> "CompiledPlan":
        """Prove that the programs compute what the graph says, on time, within memory and without deadlock.

        Raises:
            VerificationError: They do not; the message shows where.
        """
        verify_programs(self, self.programs)
        return self

    @cached_property
    def _simulations(self) -> dict[tuple[bool, bool], Simulation]:
        return {}

    def simulate(self, *, is_fused: bool = False, stores_scores: bool = False) -> Simulation:
        """Predict a step on the cluster: seconds, bubble, exposed communication, memory; prints as a table.

        Args:
            is_fused: Whether neighbours that work point by point are one kernel, as `torch.compile` makes them.
            stores_scores: Whether attention stores all its scores, as before FlashAttention.
        """
        kernels = is_fused, stores_scores
        if kernels not in self._simulations:
            prices = Prices(self.placed, self.cluster, is_fused, stores_scores)
            self._simulations[kernels] = simulate(self, self.programs, prices)
        return self._simulations[kernels]

    def compare_with_eager(
        self, model: Any, args: Any, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Comparison:
        """Run the programs of all devices in this process, and the model as it is; the largest differences.

        Args:
            model: The model that was traced, with real parameters.
            args: Its example inputs, with real values.
            kwargs: Further inputs by name.
            options: ``loss`` as for `trace`, and ``steps``, how many training steps to run.
        """
        return compare_programs_with_eager(self, self.programs, model, args, kwargs, **options)

    def save(
        self,
        directory: str | Path,
        model_reference: str = "",
        facts: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write the build folder that ``torchrun DIRECTORY/train.py`` runs; returns it.

        Args:
            directory: The folder.
            model_reference: How the user named the model (``models/gpt.py:tiny``), for the record.
            facts: Further entries of ``plan.json``, such as the command that compiled it.

        Raises:
            BuildError: The folder exists and is not a build.
        """
        notes = {DESCRIPTION: json.dumps(self.described, separators=(",", ":"))}
        return write_build(
            self, self.programs, Path(directory), model_reference, notes, {**self._facts, **(facts or {})}
        )

    @property
    def _facts(self) -> dict[str, Any]:
        """The cluster; of training the arithmetic of a step, and the peak of the devices, unless that is a guess."""
        nodes = [[group.count, group.devices_per_node] for group in self.cluster.nodes]
        cluster = {"cluster": {"name": self.cluster.name, "nodes": nodes}}
        if not self.graph.is_training:
            return cluster
        simulation = self.simulate()
        is_guess = self.cluster.kinds() == Cluster.local(1).kinds()
        peak = None if is_guess else simulation.peak_flops
        return {**cluster, "work": {"model_flops": simulation.model_flops, "peak_flops": peak}}

    @cached_property
    def described(self) -> dict[str, Any]:
        """What a page shows of it, as `superscaler.report.describe` has it."""
        return describe(self, self.programs, self.simulate(), self.report)

    def page(self) -> str:
        """An HTML page of its own that shows who computes what and when, memory, communication and source."""
        sources = {f"{module_name(program)}.py": emit(self, program) for program in self.programs}
        return make_page(self.described, sources)

    def __str__(self) -> str:
        """The plan on a page."""
        return format_plan(self)


def plan(graph: Graph, cluster: Cluster, how: str | PlanScript = "none") -> CompiledPlan:
    """Plan a graph by a plan string (``dp=2,tp=2``), by a plan script, or by search.

    Args:
        graph: What to plan.
        cluster: Where it runs.
        how: ``auto`` searches for the fastest plan, ``auto,zero=1,tp=4`` for the fastest that says so; the plan has a
            `report` of what was found.

    Raises:
        PlanError: The plan does not fit the graph or the cluster; or there is none that does; or the cluster has no
            float8, where the graph has.
    """
    check_float8(graph, cluster)
    if isinstance(how, str) and how.partition(",")[0] == "auto":
        found, report = find_plan(graph, cluster, auto_space(how))
        return CompiledPlan(found.name, found.cluster, found.materialized, found.schedule, report)
    script, name = (recipe(how), how) if isinstance(how, str) else (how, getattr(how, "__name__", "script"))
    made = make_plan(graph, cluster, script, name)
    return CompiledPlan(made.name, made.cluster, made.materialized, made.schedule)


def compile(
    model: Any,
    args: Sequence[Any] | Mapping[str, Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    cluster: Cluster,
    plan: str | PlanScript = "none",
    loss: Callable[[Any], Any] | None = None,
    optimizer: Optimizer | None = None,
    autocast: str = "",
    float8: bool = False,
    loss_scale: LossScale | str | None = None,
    dynamic: Dynamic | None = None,
    save: str | Path | None = None,
) -> CompiledPlan:
    """Trace, plan and verify a model, as `trace` and `plan` do; with `save`, write its build folder.

    Raises:
        SuperscalerError: Some step failed; the message says which, where, and what to do.
    """
    graph = trace(
        model, args, kwargs, loss, optimizer,
        autocast=autocast, float8=float8, loss_scale=loss_scale, dynamic=dynamic,
    )  # fmt: skip
    compiled = _plan(graph, cluster, plan).verify()
    if save is not None:
        compiled.save(save)
    return compiled


_plan = plan
