"""Mesh: an array of devices whose axes have names, such as dp and tp."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import prod

TIME = "mb"
"""The name of the one axis that runs in time, not over devices: the micro-batches of a step."""
LANE = "lane"
"""The name of a mesh axis along which devices run the same tasks at times of their own."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """An array of devices, row-major: the last axis varies fastest.

    >>> Mesh((0, 1, 2, 3), (("dp", 2), ("tp", 2))).coordinates(2)
    {'dp': 1, 'tp': 0}
    """

    devices: tuple[int, ...]
    axes: tuple[tuple[str, int], ...] = ()
    micro_batches: int = 1
    chunk: int = 0
    """Tells apart stages that run on the same devices, as the virtual stages of a pipeline do."""

    def __post_init__(self) -> None:
        assert prod(size for _, size in self.axes) == len(self.devices), (self.axes, self.devices)
        assert len(set(self.devices)) == len(self.devices), self.devices

    @property
    def names(self) -> tuple[str, ...]:
        """The axes over devices, major to minor."""
        return tuple(name for name, _ in self.axes)

    @property
    def home(self) -> "Mesh":
        """The mesh under which what outlives a micro-batch is held, whichever stage on these devices reads it."""
        return replace(self, chunk=0) if self.chunk else self

    def size(self, axis: str) -> int:
        """How many devices lie along `axis`; for `TIME`, the number of micro-batches."""
        return self.micro_batches if axis == TIME else dict(self.axes)[axis]

    def coordinates(self, device: int) -> dict[str, int]:
        """Where `device` lies, per axis."""
        return dict(_coordinates(self)[device])

    def device(self, coordinates: Mapping[str, int]) -> int:
        """The device at `coordinates`."""
        index = 0
        for name, size in self.axes:
            index = index * size + coordinates[name]
        return self.devices[index]

    def group(self, axis: str, device: int) -> tuple[int, ...]:
        """The devices that differ from `device` in `axis` alone, in order of that axis."""
        here = self.coordinates(device)
        return tuple(self.device({**here, axis: i}) for i in range(self.size(axis)))

    def __str__(self) -> str:
        """Print as ``dp2 x tp2 on 0-3``."""
        shape = " x ".join(f"{name}{size}" for name, size in self.axes) or "1"
        chunk = f", chunk {self.chunk}" if self.chunk else ""
        return f"{shape} on {format_devices(self.devices)}{chunk}"


@cache
def _coordinates(mesh: Mesh) -> dict[int, tuple[tuple[str, int], ...]]:
    table = {}
    for index, device in enumerate(mesh.devices):
        rest, reverse = index, []
        for name, size in reversed(mesh.axes):
            rest, coordinate = divmod(rest, size)
            reverse.append((name, coordinate))
        table[device] = tuple(reversed(reverse))
    return table


def format_devices(devices: tuple[int, ...]) -> str:
    """Print device numbers shortly: ``0-3``, ``0,2,4``.

    >>> format_devices((4, 5, 6, 7)), format_devices((0, 2))
    ('4-7', '0,2')
    """
    if len(devices) > 2 and devices == tuple(range(devices[0], devices[0] + len(devices))):
        return f"{devices[0]}-{devices[-1]}"
    return ",".join(map(str, devices))
