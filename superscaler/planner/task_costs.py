"""Costs of a plan's tasks: seconds by the cluster's prices, bytes by what lives on from one task to the next.

Operators and collectives take their time within a task, messages between stages the time between two tasks.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from superscaler.ir.graph import Phase
from superscaler.ir.kinds import VIEWS
from superscaler.ir.tensor import DTYPE_BYTES
from superscaler.planner.cluster import Cluster
from superscaler.planner.materialize import Event, Keep, MaterializedGraph, Run, Store, Transfer
from superscaler.planner.pipeline import Costs
from superscaler.planner.prices import Prices
from superscaler.planner.step_cost import local_elements
from superscaler.planner.steps import uses_time

TASK_PHASES = (Phase.FORWARD, Phase.BACKWARD, Phase.WEIGHT)


def task_costs(materialized: MaterializedGraph, cluster: Cluster) -> Costs:
    """What the tasks of each stage take on a cluster: seconds, and bytes per device."""
    seconds, latency = _Times(materialized, cluster).totals()
    stages = [StageMemory(materialized, number) for number in range(len(materialized.stages))]
    temporary = [stage.temporary for stage in stages]
    limits = tuple(
        max(
            0,
            cluster.memory_of(row.devices)
            - _lasting(materialized, row.devices[0])
            - max(temporary[stage] for stage in row.stages),
        )
        for row in materialized.rows
    )
    forward, backward, weight = (
        tuple(seconds[number, phase] for number in range(len(stages))) for phase in TASK_PHASES
    )
    return Costs(
        forward,
        backward,
        weight,
        tuple(stage.left_by_forward for stage in stages),
        tuple(stage.needed_by_weight for stage in stages),
        latency,
        limits,
    )


@dataclass(frozen=True)
class _Times:
    materialized: MaterializedGraph
    cluster: Cluster

    def totals(self) -> tuple[dict[tuple[int, Phase], float], dict[tuple[int, int], float]]:
        """Seconds per stage and phase, and per pair of stages the longer of its two ways."""
        seconds: dict[tuple[int, Phase], float] = defaultdict(float)
        ways: dict[tuple[int, int, Phase], float] = defaultdict(float)
        graph = self.materialized
        for phase in TASK_PHASES:
            for event in graph.events[phase]:
                numbers = [
                    graph.stages.index(mesh) for mesh in graph.meshes_of(event) if mesh in graph.stages
                ]
                if len(numbers) == 2:
                    ways[min(numbers), max(numbers), phase] += self._seconds(event)
                elif numbers:
                    seconds[numbers[0], phase] += self._seconds(event)
        latency: dict[tuple[int, int], float] = {}
        for (first, then, _), time in ways.items():
            latency[first, then] = max(time, latency.get((first, then), 0.0))
        return seconds, latency

    def _seconds(self, event: Event) -> float:
        values = self.materialized.values
        if isinstance(event, Transfer):
            return self._prices.step(event.step, values[event.read].tensor)
        if isinstance(event, Run):
            return self._prices.operator(event.operator)
        value = values[event.read]
        return self._prices.copy(value.tensor, value.layout, is_added=isinstance(event, Keep) and event.add)

    @cached_property
    def _prices(self) -> Prices:
        return Prices(self.materialized.placed, self.cluster)


@dataclass(frozen=True)
class StageMemory:
    """What one micro-batch of a stage holds on a device, in bytes; views share what they are views of."""

    materialized: MaterializedGraph
    number: int

    @property
    def left_by_forward(self) -> int:
        """What F makes and B or W reads."""
        return self._total(Phase.FORWARD, (Phase.BACKWARD, Phase.WEIGHT))

    @property
    def needed_by_weight(self) -> int:
        """What F or B make and W reads."""
        return self._total(Phase.FORWARD, (Phase.WEIGHT,)) + self._total(Phase.BACKWARD, (Phase.WEIGHT,))

    @cached_property
    def temporary(self) -> int:
        """The most that one task holds beyond what it finds and what it leaves."""
        left = {
            Phase.FORWARD: self.left_by_forward,
            Phase.BACKWARD: max(0, self.needed_by_weight - self.left_by_forward),
            Phase.WEIGHT: 0,
        }
        return max(0, *(self._most(phase) - left[phase] for phase in TASK_PHASES))

    def _total(self, made: Phase, read: tuple[Phase, ...]) -> int:
        return sum(
            _bytes(self.materialized, name)
            for name, (phase, _) in self._made.items()
            if phase is made and self._last_read.get(name, (made, 0))[0] in read
        )

    def _most(self, phase: Phase) -> int:
        """The most beyond the start of a task: made in it, less what it reads for the last time."""
        changes: Counter[int] = Counter()
        for name, made in self._made.items():
            last = self._last_read.get(name, made)
            size = _bytes(self.materialized, name)
            if made[0] is phase:
                changes[made[1]] += size
            if last[0] is phase:
                changes[last[1] + 1] -= size
        level = most = 0
        for place in sorted(changes):
            level += changes[place]
            most = max(most, level)
        return most

    @cached_property
    def _events(self) -> tuple[tuple[Phase, int, Event], ...]:
        return tuple(
            (phase, place, event)
            for phase in TASK_PHASES
            for place, event in enumerate(self.materialized.events[phase])
            if self.materialized.stages[self.number] in self.materialized.meshes_of(event)
        )

    @cached_property
    def _roots(self) -> dict[str, str]:
        """Value -> the value whose memory it shares; a reshape shares it where its operand is contiguous."""
        roots: dict[str, str] = {}
        strided: set[str] = set()
        for _, _, event in self._events:
            is_slice = isinstance(event, Transfer) and event.step.is_local
            kind = self.materialized.graph.by_name[event.operator].kind if isinstance(event, Run) else ""
            read, write = next(_reads(event), ""), next(_writes(event), "")
            if is_slice or kind in VIEWS or (kind == "reshape" and read not in strided):
                roots[write] = roots.get(read, read)
                if read in strided or kind != "reshape":
                    strided.add(write)
        return roots

    @cached_property
    def _made(self) -> dict[str, tuple[Phase, int]]:
        """When this stage makes or receives each value that has memory of its own."""
        return {
            name: (phase, place)
            for phase, place, event in self._events
            for name in self._here(_writes(event))
            if name not in self._roots
        }

    @cached_property
    def _last_read(self) -> dict[str, tuple[Phase, int]]:
        return {
            self._roots.get(name, name): (phase, place)
            for phase, place, event in self._events
            for name in self._here(_reads(event))
        }

    def _here(self, names: Iterator[str]) -> Iterator[str]:
        mesh = self.materialized.stages[self.number]
        return (name for name in names if self.materialized.values[name].layout.mesh == mesh)


def _reads(event: Event) -> Iterator[str]:
    yield from filter(None, event.reads if isinstance(event, Run) else (event.read,))


def _writes(event: Event) -> Iterator[str]:
    if isinstance(event, Run):
        yield from event.writes
    elif isinstance(event, Transfer):
        yield event.write


def _lasting(materialized: MaterializedGraph, device: int) -> int:
    """What a device holds for the whole step: stored tensors, inputs, and gradients that are kept."""
    kept = {
        event.write
        for phase in TASK_PHASES
        for event in materialized.events[phase]
        if isinstance(event, (Keep, Store))
    }
    total = 0
    for name in {*materialized.stored, *materialized.fed, *kept}:
        layout = materialized.values[name].layout
        if device in layout.mesh.devices:
            times = layout.mesh.micro_batches if name in materialized.fed and uses_time(layout) else 1
            total += times * _bytes(materialized, name)
    return total


def _bytes(materialized: MaterializedGraph, name: str) -> int:
    """Of the largest piece of a value, of one micro-batch."""
    value = materialized.values[name]
    return local_elements(value.layout) * DTYPE_BYTES[materialized.graph.tensors[value.tensor].dtype]
