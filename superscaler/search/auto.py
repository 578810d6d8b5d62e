"""Automatic plans: the best plans of a search, simulated as they would run; the fastest that fits is chosen."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf

from superscaler.codegen.make_programs import make_programs
from superscaler.errors import PlanError
from superscaler.ir.graph import Graph
from superscaler.planner.cluster import Cluster
from superscaler.planner.plan import Plan, make_plan
from superscaler.planner.recipes import recipe
from superscaler.search.candidate import Candidate, Space
from superscaler.search.search import Estimated, Found, Search
from superscaler.simulator.simulation import Simulation, format_seconds, simulate

GIB = 2**30
MORE_MEMORY = 8 * GIB
"""How much more memory per device the report asks about."""
LEAST_GAIN = 0.001
"""A smaller part of a step is no gain that is worth a word."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One plan that was simulated."""

    plan: str
    estimated: float
    simulated: float
    """Seconds per step."""
    memory_bytes: int
    """What the fullest device needs."""
    fits: bool


@dataclass(frozen=True)
class Report:
    """How an automatic plan was found."""

    choices: tuple[Choice, ...]
    """What was simulated, the chosen plan first, then the fastest first."""
    estimated: int
    """Plans that were estimated to the end."""
    bound: float
    """No plan of the space takes less, by the estimate."""
    gap: float
    """By which part of it the fastest estimated may be longer than need be."""
    with_more_memory: float
    """Seconds that the fastest plan would take by the estimate with `MORE_MEMORY` on each device."""
    refused: tuple[str, ...]
    """Ways in which the model cannot be cut, and why."""

    @property
    def chosen(self) -> Choice:
        """The plan."""
        return self.choices[0]

    @property
    def objective(self) -> float:
        """What the search makes least: seconds of the fastest plan by the estimate."""
        return min(choice.estimated for choice in self.choices)

    @property
    def gain_of_more_memory(self) -> float:
        """By which part a step would be shorter with `MORE_MEMORY` on each device, by the estimate."""
        return 1 - self.with_more_memory / self.objective

    def __str__(self) -> str:
        """Print what was chosen, how good it is, and what else there was."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        chosen = self.chosen
        yield f"auto: {chosen.plan}"
        yield (
            f"  step {format_seconds(chosen.simulated)} simulated, {format_seconds(chosen.estimated)} estimated; "
            f"no plan takes less than {format_seconds(self.bound)} by the estimate (gap {self.gap:.1%})"
        )
        if self.gain_of_more_memory > LEAST_GAIN:
            gain = f"{self.gain_of_more_memory:.1%}"
            yield f"  with {MORE_MEMORY // GIB} GiB more on each device a step would take {gain} less"
        else:
            yield "  more memory would not make it faster"
        yield "  runners-up:"
        for choice in self.choices[1:]:
            room = "" if choice.fits else ", does not fit"
            yield f"    {choice.plan}: {format_seconds(choice.simulated)}, {choice.memory_bytes / GIB:.3g} GiB{room}"
        yield from (f"  refused: {reason}" for reason in self.refused)


def find_plan(
    graph: Graph,
    cluster: Cluster,
    space: Space | None = None,
    *,
    simulated: int = 4,
    within: float = 0.05,
    time_limit: float = 60.0,
) -> tuple[Plan, Report]:
    """The plan with the shortest simulated step, and how it was found.

    Args:
        graph: One training step.
        cluster: All its devices are used.
        space: Which plans may be chosen.
        simulated: How many plans to simulate, those with the shortest estimates.
        within: By which part more than the least a plan may be estimated to take to be looked at.
        time_limit: Seconds for the search; simulation comes on top.

    Raises:
        PlanError: No plan fits, or none was found in time.
    """
    search = Search(graph, cluster, space or Space())
    found = search.run(time_limit, within=within)
    if not found.plans and found.bound < inf:
        raise PlanError(
            f"no plan of {graph.name!r} for {cluster.name!r} was found in {time_limit:.0f} s, though there may be some",
            remedy="fix a part of it, as in auto,tp=8, or give superscaler.search.auto.find_plan a longer time_limit",
        )
    if not found.plans:
        raise _nothing_fits(graph, cluster, found)
    more, least = search.run(time_limit, MORE_MEMORY), found
    tried: list[tuple[Choice, Plan]] = []
    unfit: set[Candidate] = set()
    while found.plans:
        tried += _simulated(graph, cluster, found.plans, simulated)
        if any(choice.fits for choice, _ in tried):
            break
        unfit.update(plan.candidate for plan in found.plans)
        found = search.run(time_limit, within=within, without=unfit)
    fitting = [(choice, plan) for choice, plan in tried if choice.fits]
    if not fitting:
        raise _nothing_fits(graph, cluster, least)
    fitting.sort(key=lambda pair: pair[0].simulated)
    chosen, plan = fitting[0]
    others = sorted((c for c, _ in tried if c is not chosen), key=lambda choice: choice.simulated)
    report = Report(
        (chosen, *others), len(found.plans), found.bound, found.gap,
        min(plan.seconds for plan in (*found.plans[:1], *more.plans[:1])),
        found.reasons,
    )  # fmt: skip
    return replace(plan, name=chosen.plan), report


def _simulated(
    graph: Graph, cluster: Cluster, plans: Sequence[Estimated], count: int
) -> Iterator[tuple[Choice, Plan]]:
    """Plan and simulate the first that can be planned, and more until one fits."""
    done, has_fitting = 0, False
    for estimated in plans:
        if done >= count and has_fitting:
            return
        text = str(estimated.candidate)
        try:
            plan = make_plan(graph, cluster, recipe(text), text)
        except PlanError:  # what the estimate does not know of, such as uneven pieces
            continue
        simulation = simulate(plan, make_programs(plan))
        done, has_fitting = done + 1, has_fitting or simulation.fits
        yield _choice(text, estimated.seconds, simulation), plan


def _choice(text: str, estimated: float, simulation: Simulation) -> Choice:
    most = max(row.memory.total for row in simulation.rows)
    return Choice(text, estimated, simulation.step_seconds, most, simulation.fits)


def _nothing_fits(graph: Graph, cluster: Cluster, found: Found) -> PlanError:
    has = cluster.memory_of() / GIB
    if found.least_memory is None:
        return PlanError(
            f"no plan of {graph.name!r} uses the {cluster.num_devices} devices of {cluster.name!r}",
            remedy="; ".join(["give a batch that they can share", *found.reasons]),
        )
    needed, candidate = found.least_memory
    return PlanError(
        f"no plan of {graph.name!r} fits {cluster.name!r}: memory per device is {has:.3g} GiB, and the least that "
        f"any plan needs is about {needed / GIB:.3g} GiB ({candidate})",
        remedy="use more devices, devices with more memory, or a smaller batch",
    )
