"""Prices of layers: what each layer of a model takes under one way to cut it, found on a few of them.

The shortened graph is planned with a stage per layer, so that all that a plan does to a layer is priced: what it
computes again, what it gathers, what it keeps. A layer that stands for others lends them its price. What lies before
the first layer counts with it, what lies behind the last with that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from superscaler.codegen.make_programs import make_programs
from superscaler.codegen.program import Part, Program
from superscaler.ir.axes import Axes
from superscaler.ir.graph import Phase
from superscaler.ir.shorten import ShortGraph
from superscaler.ir.tensor import DTYPE_BYTES, Role
from superscaler.planner.cluster import Cluster, Nodes
from superscaler.planner.materialize import MaterializedGraph
from superscaler.planner.plan import Plan, place
from superscaler.planner.prices import Prices
from superscaler.planner.recipes import recipe
from superscaler.planner.schedule import Schedule, Task
from superscaler.planner.step_cost import local_elements
from superscaler.planner.task_costs import StageMemory
from superscaler.simulator.actions import Action, Give, Take, find_actions
from superscaler.simulator.instruction_seconds import InstructionPrices
from superscaler.simulator.replay import RowActions, replay


@dataclass(frozen=True, slots=True)
class Way:
    """How the layers of a plan are cut and what they keep, on the devices of one replica of a stage."""

    tp: int = 1
    sp: bool = False
    recompute: str = ""
    co_shard: int = 1

    @property
    def num_devices(self) -> int:
        """Of one replica of a stage."""
        return self.tp

    @property
    def words(self) -> tuple[str, ...]:
        """As a plan string says it."""
        said = [f"tp={self.tp}"] * (self.tp > 1) + ["sp"] * self.sp
        said += [f"co_shard={self.co_shard}"] * (self.co_shard > 1)
        return (*said, *([f"recompute={self.recompute}"] * bool(self.recompute)))


@dataclass(frozen=True, slots=True)
class LayerPrice:
    """What one layer takes on each device: seconds per micro-batch or per step, and bytes."""

    forward: float
    backward: float
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


def between(low: LayerPrice, high: LayerPrice, share: float) -> LayerPrice:
    """What lies in between, on a line: times and sizes are sums of a constant and of parts of the samples."""

    def mean(name: str) -> float:
        start = getattr(low, name)
        return start + share * (getattr(high, name) - start)

    return LayerPrice(*(type(getattr(low, field.name))(mean(field.name)) for field in fields(LayerPrice)))


def layer_prices(
    short: ShortGraph, axes: Axes, cluster: Cluster, nodes: Nodes, way: Way, micro_batches: int
) -> tuple[LayerPrice, ...]:
    """The price of every layer of the whole model, in order.

    Args:
        short: The model's graph, with few of its layers.
        axes: Of the short graph.
        cluster: Whose transport holds.
        nodes: The nodes whose devices run the layers.
        way: How they do.
        micro_batches: Into how many parts one replica cuts the batch.

    Raises:
        PlanError: The layers cannot be cut this way.
    """
    layers = list(short.stands_for)
    count = len(layers)
    words = [f"pp={count}", f"layers={'+'.join('1' * count)}"] if count > 1 else []
    words += [f"micro_batches={micro_batches}", "schedule=gpipe", *way.words]
    own = replace(nodes, count=count, devices_per_node=way.num_devices)
    small = replace(cluster, nodes=(own,))
    _, materialized = place(short.graph, small, recipe(",".join(words)), axes)
    stages = _stage_prices(materialized, small)
    priced = dict(zip(layers, stages, strict=True))
    by_layer = {copy: priced[layer] for layer, copies in short.stands_for.items() for copy in copies}
    return tuple(by_layer[layer] for layer in _in_order(short))


def _in_order(short: ShortGraph) -> list[str]:
    """All layers of the whole model; copies follow each other in turn."""
    order: list[str] = []
    periods: list[Sequence[str]] = []
    for copies in short.stands_for.values():
        if len(copies) > 1 and (not periods or len(periods[-1]) == len(copies)):
            periods.append(copies)
            continue
        order += [layer for period in zip(*periods, strict=True) for layer in period]
        periods = [copies] if len(copies) > 1 else []
        order += copies if len(copies) == 1 else ()
    return order + [layer for period in zip(*periods, strict=True) for layer in period]


def _stage_prices(materialized: MaterializedGraph, cluster: Cluster) -> list[LayerPrice]:
    count = len(materialized.stages)
    tasks = tuple((Task(stage, Phase.FORWARD, 0), Task(stage, Phase.BACKWARD, 0)) for stage in range(count))
    plan = Plan("layers", cluster, materialized, Schedule("once", 1, tasks))
    prices = Prices(plan.placed, cluster)
    programs = make_programs(plan)
    rows = {device: program.row for program in programs for device in program.devices}
    return [
        _price(program, materialized, find_actions(program, rows, InstructionPrices(prices)).bodies)
        for program in programs
    ]


def _price(
    program: Program, materialized: MaterializedGraph, actions: Mapping[Part, Sequence[Action]]
) -> LayerPrice:
    (stage,) = program.stages
    memory = StageMemory(materialized, stage)
    forward = actions.get(Part(Phase.FORWARD, stage), ())
    stored, gradients = _stored_bytes(program)
    return LayerPrice(
        _alone(forward),
        _alone(actions.get(Part(Phase.BACKWARD, stage), ())),
        _alone(actions.get(Part(Phase.UPDATE), ())),
        sum(action.seconds for action in forward if isinstance(action, Give)),
        stored[Role.PARAMETER] + stored[Role.BUFFER],
        stored[Role.STATE],
        gradients,
        memory.left_by_forward,
        memory.temporary,
    )


def _alone(actions: Sequence[Action]) -> float:
    """How long a body takes whose messages are there."""
    task = Task(0, Phase.FORWARD, 0)
    own = [action for action in actions if not isinstance(action, (Give, Take))]
    (spans,) = replay([RowActions((task,), {Part(task.phase, 0): own})])
    return max((span.end for span in spans), default=0.0)


def _stored_bytes(program: Program) -> tuple[dict[Role, int], int]:
    """Of what is stored, by role; and of the gradients of the parameters among it."""
    tensors, stored = program.graph.tensors, dict.fromkeys(Role, 0)
    gradients: dict[str, int] = {}
    for value in (program.values[name] for name in program.stored):
        elements = local_elements(value.layout)
        stored[tensors[value.tensor].role] += elements * DTYPE_BYTES[value.dtype]
        if value.tensor in program.graph.gradients:
            gradient = tensors[program.graph.gradients[value.tensor]]
            gradients[value.tensor] = elements * DTYPE_BYTES[gradient.dtype]
    return stored, sum(gradients.values())
