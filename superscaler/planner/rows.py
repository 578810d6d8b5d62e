"""Rows: devices that run one program: those that take part in the same stages, at the same times."""

from collections.abc import Sequence
from dataclasses import dataclass

from superscaler.ir.mesh import LANE, Mesh


@dataclass(frozen=True, slots=True)
class Row:
    """Devices that run one program."""

    devices: tuple[int, ...]
    stages: tuple[int, ...]
    """The stages they take part in, in order; several where stages share devices."""


def find_rows(stages: Sequence[Mesh]) -> tuple[Row, ...]:
    """All devices of the stages, in rows; where no two stages share devices, row i is stage i.

    Devices at different places of an axis named ``lane`` run the same tasks at different times, and so are in
    different rows.
    """
    parts: dict[int, list[tuple[int, int]]] = {}
    for number, mesh in enumerate(stages):
        for device in mesh.devices:
            lane = mesh.coordinates(device)[LANE] if LANE in mesh.names else 0
            parts.setdefault(device, []).append((number, lane))
    members: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for device, part in parts.items():
        members.setdefault(tuple(part), []).append(device)
    rows = [Row(tuple(devices), tuple(number for number, _ in part)) for part, devices in members.items()]
    return tuple(sorted(rows, key=lambda row: (row.stages[0] if len(rows) == len(stages) else 0, row.devices)))
