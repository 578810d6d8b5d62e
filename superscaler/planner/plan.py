"""Plan: the finished product: a materialized graph and its schedule, with a reason for everything."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from superscaler.errors import PlanError
from superscaler.ir.axes import Axes
from superscaler.ir.graph import Graph, Operator, Phase, drop_unread
from superscaler.ir.mesh import format_devices
from superscaler.ir.size import Requirement
from superscaler.planner.check_schedule import check_schedule
from superscaler.planner.cluster import Cluster
from superscaler.planner.communication import Communication, find_communication
from superscaler.planner.complete import complete
from superscaler.planner.materialize import MaterializedGraph, Transfer, materialize
from superscaler.planner.micro_batches import compute_sums_beforehand
from superscaler.planner.pipeline import Pipeline, ScheduleMaker
from superscaler.planner.placement import PlacedGraph
from superscaler.planner.planner import Planner
from superscaler.planner.requirements import plan_requirements
from superscaler.planner.rewrite import rewrite
from superscaler.planner.schedule import Schedule, order_tasks
from superscaler.planner.schedules import gpipe
from superscaler.planner.task_costs import task_costs

PlanScript = Callable[[Planner], None]


@dataclass(frozen=True)
class Plan:
    """Where and when every operator runs, and what moves in between."""

    name: str
    """The plan string or the script's name."""
    cluster: Cluster
    materialized: MaterializedGraph
    schedule: Schedule

    @property
    def graph(self) -> Graph:
        """The logical graph."""
        return self.materialized.graph

    @property
    def placed(self) -> PlacedGraph:
        """Cuts, places and phases of the operators."""
        return self.materialized.placed

    @property
    def num_devices(self) -> int:
        """Devices the plan uses: 0 to this number, less one."""
        return 1 + max(device for mesh in self.materialized.stages for device in mesh.devices)

    @cached_property
    def requirements(self) -> tuple[Requirement, ...]:
        """What the model and the plan ask of sizes that vary."""
        return plan_requirements(self.materialized)

    @cached_property
    def transfers(self) -> tuple[tuple[Phase, Transfer], ...]:
        """Every communication step, with the phase it happens in."""
        return tuple(
            (phase, event)
            for phase, events in self.materialized.events.items()
            for event in events
            if isinstance(event, Transfer) and not event.step.is_local
        )

    def communication(self) -> Communication:
        """Every move with its bytes, how often a step makes it, among which devices and why; prints as a table."""
        return find_communication(self.materialized, self.schedule.micro_batches)

    def explain(self, operator: str | Operator) -> str:
        """Why an operator is cut and placed as it is, and what its tensors look like.

        Raises:
            PlanError: There is no such operator.
        """
        found = operator if isinstance(operator, Operator) else self.graph.operator(operator)
        placed = self.placed
        place = filter(None, (found.module or "top level", found.source))
        lines = [f"{found.name} = {found.kind}  ({', '.join(place)})"]
        lines += [f"  {reason}" for reason in placed.reasons[found.name]] or [
            "  not cut: nothing the plan cuts runs through it"
        ]
        for verb, names, layouts in (
            ("reads", found.reads, placed.reads(found)),
            ("writes", found.writes, placed.writes(found)),
        ):
            lines += [
                f"  {verb} {name} as {layout or 'a number'}"
                for name, layout in zip(names, layouts, strict=True)
            ]
        return "\n".join(lines)


def make_plan(graph: Graph, cluster: Cluster, script: PlanScript, name: str) -> Plan:
    """Run a plan script and derive everything that follows from it.

    Raises:
        PlanError: The script asks for something that cannot be, or leaves an operator without a place.
    """
    planner, materialized = place(graph, cluster, script)
    maker = planner.schedule or gpipe(1)
    pipeline = materialized.pipeline
    if maker.weighs_costs:
        pipeline = pipeline.with_costs(task_costs(materialized, cluster))
    schedule = _schedule(planner, maker, pipeline)
    if len(schedule.rows) != len(materialized.rows):
        raise PlanError(
            f"the schedule {schedule.name!r} has {len(schedule.rows)} rows for "
            f"{len(materialized.rows)} groups of devices",
            where=planner.schedule_said_by,
            remedy="give the schedule a row per group of devices, in the order of the forward pass: "
            + "; ".join(
                f"{format_devices(row.devices)} (stage {', '.join(map(str, row.stages))})"
                for row in materialized.rows
            ),
        )
    ordered = order_tasks(schedule, planner.task_orders)
    said = [planner.schedule_said_by, *(order.where for order in planner.task_orders)]
    check_schedule(materialized, ordered, ", ".join(dict.fromkeys(filter(None, said))))
    return Plan(name, cluster, materialized, ordered)


def place(
    graph: Graph, cluster: Cluster, script: PlanScript, axes: Axes | None = None
) -> tuple[Planner, MaterializedGraph]:
    """Run a plan script and derive what follows from it in space: all of a plan but its schedule.

    A script that asks for blocks to be computed again, or piece after piece, runs a second time, on the graph that
    does so; one that asks for micro-batches does, on the graph that computes beforehand what sums over the whole batch.

    Args:
        graph, cluster, script: As `make_plan` takes them.
        axes: Of the graph, where they have been found before.

    Raises:
        PlanError: As `make_plan`.
    """
    planner = _decisions(graph, cluster, script, axes)
    maker = planner.schedule or gpipe(1)
    if planner.repeated or planner.co_sharded:
        graph = rewrite(planner, maker.micro_batches)
        planner = _decisions(graph, cluster, script, is_rewritten=True)
    if maker.micro_batches > 1:
        split_graph = drop_unread(compute_sums_beforehand(graph, planner.axes))
        if split_graph.operators != graph.operators:
            planner = _decisions(split_graph, cluster, script, is_rewritten=True)
    placed = complete(planner, maker.micro_batches, splits_backward=maker.splits_backward)
    return planner, materialize(placed, cluster, planner.operator_orders)


def _schedule(planner: Planner, maker: ScheduleMaker, pipeline: Pipeline) -> Schedule:
    try:
        return maker(pipeline)
    except PlanError as error:
        where = error.where or planner.schedule_said_by
        raise PlanError(error.what, where=where, remedy=error.remedy) from error


def _decisions(
    graph: Graph,
    cluster: Cluster,
    script: PlanScript,
    axes: Axes | None = None,
    *,
    is_rewritten: bool = False,
) -> Planner:
    planner = Planner(graph, cluster, is_rewritten=is_rewritten, known_axes=axes)
    script(planner)
    return planner
