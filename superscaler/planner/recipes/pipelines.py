"""Recipes for pipelines: which layers are which stage, and on which rows of devices each stage runs.

Where stages go is part of what a schedule is (`superscaler.planner.schedules.NAMED`): one per row, several per
row, there and back, from both ends, or on all rows at once.
"""

from collections.abc import Callable, Sequence

from superscaler.errors import PlanError
from superscaler.ir.mesh import LANE, Mesh
from superscaler.planner.layers import layers as find_layers
from superscaler.planner.passes import find_passes
from superscaler.planner.pipeline import Lanes, ScheduleMaker
from superscaler.planner.planner import Planner
from superscaler.planner.recipes.data_parallelism import data_parallel
from superscaler.planner.recipes.vocabulary import cut_vocabulary, vocabulary_stages
from superscaler.planner.schedules import NAMED, interleaved, three_f_one_b
from superscaler.planner.selection import Selection

ROWS = "pp"
"""The mesh axis that runs over the rows, in stages that are on all of them."""
Devices = Sequence[Sequence[int]]
"""The devices of each row."""
PlacedSchedule = Callable[[Planner, Devices, int, Sequence[int], dict[str, int]], ScheduleMaker]
"""From the rows, a number of micro-batches, the layers of each stage and the axes of a row."""


def pipeline(p: Planner, stages: int, layers: Sequence[int] = (), **axes: int) -> None:
    """Place runs of layers of nearly equal work on groups of devices, to be ordered in time (GPipe, arXiv 1811.06965).

    Args:
        p: The planner.
        stages: How many, each on a group of devices of its own.
        layers: Of each stage, where they are not to have nearly equal work.
        axes: Axes of the array of devices of each group.

    Raises:
        PlanError: The model has no numbered modules, or fewer than stages.
    """
    groups = p.cluster.groups(stages)
    if stages == 1:
        p.assign(p.everything(), p.mesh(groups[0], **_above_one(axes)))
        return
    place_stages(p, p.split_layers(stages, layers), groups, tuple(((row,),) for row in range(stages)), **axes)


def scheduled_pipeline(
    p: Planner,
    schedule: str,
    rows: int,
    micro_batches: int,
    per_row: int = 2,
    layers: Sequence[int] = (),
    **axes: int,
) -> None:
    """Place the stages a named schedule is for, and order their tasks by it.

    Args:
        p: The planner.
        schedule: A name of `NAMED`.
        rows: Rows of devices.
        micro_batches: How many the batch is cut into.
        per_row: For ``interleaved``: stages per row.
        layers: Of each stage, where they are not to have nearly equal work.
        axes: Axes of the array of devices of each row.

    Raises:
        PlanError: The model has too few layers, or not what the schedule is for.
    """
    if rows == 1 and NAMED[schedule].pipeline(1).num_stages == 1:
        pipeline(p, 1, layers, **axes)
        p.order(NAMED[schedule].make(micro_batches))
        return
    groups = p.cluster.groups(rows)
    if schedule in PLACED_OTHERWISE:
        p.order(PLACED_OTHERWISE[schedule](p, groups, micro_batches, layers, axes))
        return
    maker = NAMED[schedule].make(micro_batches)
    lanes = NAMED[schedule].pipeline(rows).lanes
    if schedule == "interleaved":
        maker = interleaved(micro_batches, per_row)
        lanes = tuple(((stage % rows,),) for stage in range(per_row * rows))
    if not lanes:
        raise PlanError(
            f"the schedule {schedule!r} is not for {rows} rows of devices",
            where=p.speaker,
            remedy="use an even number of them (pp=2, pp=4, ...)",
        )
    place_stages(p, p.split_layers(len(lanes), layers), groups, lanes, **axes)
    if len(lanes[0]) > 1:
        data_parallel(p, LANE)
    p.order(maker)


def place_stages(p: Planner, stages: Sequence[Selection], groups: Devices, lanes: Lanes, **axes: int) -> None:
    """Place each stage on the devices of its lanes, as the next chunk of those devices.

    Args:
        p: The planner.
        stages: In the order of the forward pass.
        groups: The devices of each row.
        lanes: Per stage and lane the rows it runs on.
        axes: Axes of the array of devices of each row.
    """
    taken: dict[Mesh, int] = {}
    for stage, where in zip(stages, lanes, strict=True):
        devices = [device for lane in where for row in lane for device in groups[row]]
        own = _above_one({LANE: len(where), ROWS: len(where[0]), **axes})
        mesh = p.mesh(devices, **own) if own else p.mesh(devices)
        p.assign(stage, mesh, chunk=taken.get(mesh, 0))
        taken[mesh] = taken.get(mesh, 0) + 1


def _above_one(axes: dict[str, int]) -> dict[str, int]:
    return {name: size for name, size in axes.items() if size > 1}


def _interlaced_by(schedule: str) -> PlacedSchedule:
    """The vocabulary cut over all rows, the layers a pipeline (SuperScaler's interlaced pipeline, for mBART)."""

    def place(
        p: Planner, groups: Devices, micro_batches: int, layers: Sequence[int], axes: dict[str, int]
    ) -> ScheduleMaker:
        stages = p.split_layers(len(groups), layers)
        before, behind = vocabulary_stages(p, [operator for stage in stages for operator in stage])
        lanes = NAMED[schedule].pipeline(len(groups)).lanes
        place_stages(p, [before, *stages, behind], groups, lanes, **axes)
        cut_vocabulary(p, ROWS)
        return NAMED[schedule].make(micro_batches)

    return place


def _passes(
    p: Planner, groups: Devices, micro_batches: int, layers: Sequence[int], axes: dict[str, int]
) -> ScheduleMaker:
    """Every pass through the layers on the same rows, each pass a chunk of its own (SuperScaler's 3F1B)."""
    rows = len(groups)
    passes = find_passes(p.graph, list(find_layers(p.graph, p.axes, rows)))
    count = 1 + max(passes.values(), default=0)
    if count == 1:
        raise PlanError(
            f"the model {p.graph.name!r} runs through its layers once: there is nothing to recycle",
            where=p.speaker,
            remedy="use schedule=1f1b",
        )
    stages = [
        Selection(p.graph, p.axes, tuple(o for o in stage if passes.get(o.name) == number), f"pass {number}")
        for number in range(count)
        for stage in p.split_layers(rows, layers)
    ]
    place_stages(p, stages, groups, tuple(((stage % rows,),) for stage in range(count * rows)), **axes)
    return three_f_one_b(micro_batches, count)


PLACED_OTHERWISE: dict[str, PlacedSchedule] = {
    "interlaced": _interlaced_by("interlaced"),
    "interlaced-ahead": _interlaced_by("interlaced-ahead"),
    "3f1b": _passes,
}
"""Schedules whose stages are not runs of layers one after another: what places them, and makes their schedule."""
