"""Rows: devices that run one program: those that take part in the same stages, at the same times."""

from collections.abc import Sequence
from dataclasses import dataclass

from superscaler.ir.graph import Phase
from superscaler.ir.mesh import LANE, Mesh
from superscaler.planner.pipeline import Lanes, Pipeline


@dataclass(frozen=True, slots=True)
class Row:
    """Devices that run one program."""

    devices: tuple[int, ...]
    stages: tuple[int, ...]
    """The stages they take part in, in order; several where stages share devices."""


def find_rows(stages: Sequence[Mesh]) -> tuple[Row, ...]:
    """All devices of the stages, in rows, by their first stage; row i is stage i where none share devices.

    Devices at different places of an axis named ``lane`` run the same tasks at different times, and so are in
    different rows.
    """
    parts: dict[int, list[tuple[int, int]]] = {}
    for number, mesh in enumerate(stages):
        for device in mesh.devices:
            parts.setdefault(device, []).append((number, _lane(mesh, device)))
    members: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for device, part in parts.items():
        members.setdefault(tuple(part), []).append(device)
    # by the stages that few rows share, so that rows follow the order of the pipeline
    shared = [
        sum(any(number == stage for number, _ in part) for part in members) for stage in range(len(stages))
    ]
    order = sorted(members, key=lambda part: min((shared[number], lane, number) for number, lane in part))
    return tuple(Row(tuple(members[part]), tuple(number for number, _ in part)) for part in order)


def pipeline_of(
    stages: Sequence[Mesh],
    rows: Sequence[Row],
    edges: Sequence[tuple[int, int]],
    phases: Sequence[frozenset[Phase]],
) -> Pipeline:
    """What a schedule is to be made for.

    Args:
        stages: The mesh of each stage.
        rows: The rows of their devices.
        edges: Which stage feeds which in the forward pass.
        phases: Per stage the phases among F, B and W in which it has something to do.
    """
    lanes: Lanes = tuple(
        tuple(
            tuple(
                number
                for number, row in enumerate(rows)
                if stage in row.stages and _lane(mesh, row.devices[0]) == lane
            )
            for lane in range(mesh.size(LANE) if LANE in mesh.names else 1)
        )
        for stage, mesh in enumerate(stages)
    )
    training = any(Phase.BACKWARD in found for found in phases)
    without = frozenset(stage for stage, found in enumerate(phases) if Phase.BACKWARD not in found)
    ahead = tuple((first, then) for first, then in edges if first < then)
    return Pipeline(lanes, ahead, training, without if training else frozenset())


def _lane(mesh: Mesh, device: int) -> int:
    return mesh.coordinates(device)[LANE] if LANE in mesh.names else 0
