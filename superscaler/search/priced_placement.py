"""A placement with prices: what stages of a placed graph take on each device of their row."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise

from superscaler.codegen.make_programs import make_programs
from superscaler.codegen.memory import TaskMemory, memory_over_tasks
from superscaler.codegen.program import Part, Program
from superscaler.ir.graph import Phase
from superscaler.ir.layout import Layout
from superscaler.ir.tensor import DTYPE_BYTES, Role
from superscaler.planner.cluster import Cluster
from superscaler.planner.materialize import MaterializedGraph
from superscaler.planner.plan import Plan
from superscaler.planner.prices import Prices
from superscaler.planner.schedule import Task
from superscaler.planner.schedules import gpipe
from superscaler.planner.step_cost import local_elements
from superscaler.simulator.actions import Action, Give, Take, TaskActions, find_actions
from superscaler.simulator.instruction_seconds import InstructionPrices
from superscaler.simulator.replay import RowActions, replay

UPDATED = (Role.PARAMETER, Role.STATE)


@dataclass(frozen=True, slots=True)
class LayerPrice:
    """What one layer takes on each device: seconds per micro-batch or per step, and bytes."""

    forward: float
    backward: float
    last_forward: float
    """Of the forward, the last pass, where a micro-batch goes through the layer several times; else all of it."""
    update: float
    """Per step."""
    hand_on: float
    """A message with its result to the next stage, one way."""
    parameters: int
    states: int
    gradients: int
    activations: int
    """Of one micro-batch, from its forward to its backward."""
    temporary: int
    """The most that a task holds besides."""


def weighted_sum(prices: Sequence[LayerPrice], weights: Sequence[float]) -> LayerPrice:
    """The weighted sum of prices."""

    def total(name: str) -> float:
        return sum(weight * getattr(price, name) for price, weight in zip(prices, weights, strict=True))

    return LayerPrice(
        *(type(getattr(prices[0], field.name))(total(field.name)) for field in fields(LayerPrice))
    )


def slowest(prices: Sequence[LayerPrice]) -> LayerPrice:
    """What a layer takes where devices of several kinds run it together."""
    return LayerPrice(*(max(getattr(price, field.name) for price in prices) for field in fields(LayerPrice)))


@dataclass(frozen=True)
class PricedPlacement:
    """A placed graph on a cluster."""

    materialized: MaterializedGraph
    cluster: Cluster

    def price(
        self, row: int, stages: Sequence[int], is_theirs: Callable[[Layout], bool] | None = None
    ) -> LayerPrice:
        """What some stages that a row hosts take together.

        Args:
            row: A row of devices.
            stages: Of those it hosts, in order; a micro-batch goes through them as one layer.
            is_theirs: Whether what is stored in a layout is stored for them; None: if it is on their devices.
        """
        homes = {self.materialized.stages[stage].home for stage in stages}
        is_theirs = is_theirs or (lambda layout: layout.mesh.home in homes)
        bodies = self._actions[row].bodies
        forwards = [bodies.get(Part(Phase.FORWARD, stage), ()) for stage in stages]
        backwards = [bodies.get(Part(Phase.BACKWARD, stage), ()) for stage in stages]
        stored, gradients, share = _stored_bytes(self._programs[row], is_theirs)
        gives = [action.seconds for body in forwards for action in body if isinstance(action, Give)]
        return LayerPrice(
            sum(map(_alone, forwards)),
            sum(map(_alone, backwards)),
            _alone(forwards[-1]),
            share * _alone(bodies.get(Part(Phase.UPDATE), ())),
            sum(gives) / len(stages),
            stored[Role.PARAMETER] + stored[Role.BUFFER],
            stored[Role.STATE],
            gradients,
            *self._held(row, stages),
        )

    def _held(self, row: int, stages: Sequence[int]) -> tuple[int, int]:
        """Bytes that forwards leave for backwards, and the most that a task holds besides; gradients stand anyway."""
        activations = temporary = 0
        for before, task in pairwise(self._memory[row]):
            if task.task.stage not in stages:
                continue
            start, most, after = (use.total - use.gradients for use in (before.after, task.most, task.after))
            if task.task.phase is Phase.FORWARD:
                activations += after - start
            temporary = max(temporary, most - max(start, after))
        return activations, temporary

    @cached_property
    def _memory(self) -> tuple[tuple[TaskMemory, ...], ...]:
        return tuple(map(memory_over_tasks, self._programs))

    @cached_property
    def _programs(self) -> tuple[Program, ...]:
        plan = Plan("layers", self.cluster, self.materialized, gpipe(1)(self.materialized.pipeline))
        return make_programs(plan)

    @cached_property
    def _actions(self) -> tuple[TaskActions, ...]:
        prices = InstructionPrices(Prices(self.materialized.placed, self.cluster))
        rows = {device: program.row for program in self._programs for device in program.devices}
        return tuple(find_actions(program, rows, prices) for program in self._programs)


def _stored_bytes(program: Program, is_theirs: Callable[[Layout], bool]) -> tuple[Counter[Role], int, float]:
    """Of what is stored in some layouts, by role; of the gradients among it; and their share in the update.

    What an update takes grows with the bytes of what it reads and writes.
    """
    tensors, stored = program.graph.tensors, Counter[Role]()
    gradients: dict[str, int] = {}
    everything = 0
    for value in (program.values[name] for name in program.stored):
        elements, role = local_elements(value.layout), tensors[value.tensor].role
        num_bytes = elements * DTYPE_BYTES[value.dtype]
        everything += num_bytes * (role in UPDATED)
        if not is_theirs(value.layout):
            continue
        stored[role] += num_bytes
        if value.tensor in program.graph.gradients:
            gradient = tensors[program.graph.gradients[value.tensor]]
            gradients[value.tensor] = elements * DTYPE_BYTES[gradient.dtype]
    updated = sum(stored[role] for role in UPDATED)
    return stored, sum(gradients.values()), updated / everything if everything else 0.0


def _alone(actions: Sequence[Action]) -> float:
    """How long a body takes whose messages are there."""
    task = Task(0, Phase.FORWARD, 0)
    own = [action for action in actions if not isinstance(action, (Give, Take))]
    (spans,) = replay([RowActions((task,), {Part(task.phase, 0): own})])
    return max((span.end for span in spans), default=0.0)
