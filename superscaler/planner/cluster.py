"""Cluster: nodes of devices of several kinds, and the links between them."""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from superscaler.errors import PlanError
from superscaler.planner.device import Device
from superscaler.planner.figures import check_positive
from superscaler.planner.profile_database import NOTHING_MEASURED, ProfileDatabase
from superscaler.planner.transport import IDEAL, Transport


@dataclass(frozen=True, slots=True)
class Link:
    """A way from a device to others, in one direction.

    Raises:
        PlanError: when a figure is not positive.
    """

    bandwidth: float
    """Bytes per second, as a data sheet has it."""
    latency: float
    """Seconds until the first byte of a large message arrives."""
    efficiency: float = 1.0
    """Fraction of the bandwidth that large messages reach."""

    def __post_init__(self) -> None:
        check_positive("a link", self)
        if self.efficiency > 1:
            raise PlanError(f"a link's efficiency is {self.efficiency}", remedy="give a fraction, at most 1")


@dataclass(frozen=True, slots=True)
class Nodes:
    """Equal nodes of equal devices.

    Raises:
        PlanError: when a number is not positive.
    """

    count: int
    devices_per_node: int
    device: Device
    link: Link
    """From one device to those of its node."""
    network: Link
    """From one network card to other nodes."""
    cards: int
    """Network cards of a node, which its devices share."""

    def __post_init__(self) -> None:
        check_positive("a run of nodes", self)

    @property
    def num_devices(self) -> int:
        """Of all these nodes."""
        return self.count * self.devices_per_node

    def network_bandwidth(self, active: int) -> float:
        """Bytes per second that one device gets through to other nodes while `active` devices of its node send."""
        return self.network.bandwidth * self.network.efficiency * min(1.0, self.cards / active)


@dataclass(frozen=True)
class Cluster:
    """Devices, numbered node by node, in runs of equal nodes: what is stored does not grow with their number."""

    name: str
    nodes: tuple[Nodes, ...]
    transport: Transport = IDEAL
    profiled: ProfileDatabase = field(default=NOTHING_MEASURED, compare=False, repr=False)
    """Measured times of operators, which count in place of what the devices' curves say."""

    def __post_init__(self) -> None:
        if not self.nodes:
            raise PlanError(f"cluster {self.name!r} has no nodes", remedy="give at least one")

    @staticmethod
    def local(num_devices: int) -> "Cluster":
        """One machine of `num_devices` processes; the figures are guesses for a laptop's processor."""
        from superscaler.planner.cluster_presets import local

        return local(num_devices)

    @staticmethod
    def preset(name: str, nodes: int = 1) -> "Cluster":
        """A known machine, `nodes` times.

        Raises:
            PlanError: when there is no such preset; the message lists those there are.
        """
        from superscaler.planner.cluster_presets import PRESETS

        if name not in PRESETS:
            raise PlanError(f"no cluster preset {name!r}", remedy=f"one of {', '.join(PRESETS)}")
        if nodes < 1:
            raise PlanError(f"cluster {name!r} with {nodes} nodes", remedy="ask for at least one node")
        one = PRESETS[name]
        return replace(one, nodes=tuple(replace(group, count=nodes) for group in one.nodes))

    @staticmethod
    def load(path: str | Path) -> "Cluster":
        """Read a cluster from YAML (`superscaler.planner.cluster_file` says what may be in it).

        Raises:
            PlanError: when the file is missing, is no mapping, or a field is missing, unknown or no number.
        """
        from superscaler.planner.cluster_file import load

        return load(path)

    def save(self, path: str | Path, profiled: str | Path = "") -> None:
        """Write a YAML file that `load` reads; `profiled`: the file of its profile database, relative to this one."""
        from superscaler.planner.cluster_file import save

        save(self, path, profiled)

    @staticmethod
    def parse(text: str) -> "Cluster":
        """A cluster from a command line: ``local:4``, ``dgx-a100:8`` (nodes), or the path of a YAML file.

        ``[:12]`` behind it means its first 12 devices.

        Raises:
            PlanError: when `text` is none of these; the message lists what there is.
        """
        from superscaler.planner.cluster_presets import PRESETS

        of_first = re.fullmatch(r"(.+)\[:(\d+)\]", text)
        if of_first:
            return Cluster.parse(of_first[1]).first(int(of_first[2]))
        if text.endswith((".yaml", ".yml")):
            return Cluster.load(text)
        name, _, count = text.partition(":")
        known = f"local:DEVICES, {', '.join(f'{preset}:NODES' for preset in PRESETS)}, or a .yaml file"
        if name not in ("local", *PRESETS) or (count and not count.isdecimal()) or (count and int(count) < 1):
            raise PlanError(f"no cluster {text!r}", remedy=f"one of {known}")
        number = int(count or 1)
        return Cluster.local(number) if name == "local" else Cluster.preset(name, number)

    @cached_property
    def num_devices(self) -> int:
        """How many devices there are."""
        return sum(group.num_devices for group in self.nodes)

    @property
    def devices(self) -> tuple[int, ...]:
        """The numbers of all devices."""
        return tuple(range(self.num_devices))

    @property
    def devices_per_node(self) -> int:
        """Of the smallest node."""
        return min(group.devices_per_node for group in self.nodes)

    @property
    def memory_bytes(self) -> int:
        """Memory of the smallest device."""
        return self.memory_of()

    def groups(self, count: int) -> tuple[tuple[int, ...], ...]:
        """The devices in `count` equal groups of consecutive numbers.

        Raises:
            PlanError: when the devices cannot be shared out evenly.
        """
        if count < 1 or self.num_devices % count:
            raise PlanError(
                f"{self.num_devices} devices of cluster {self.name!r} cannot form {count} equal groups",
                remedy="choose a number of groups that divides the number of devices",
            )
        size = self.num_devices // count
        return tuple(tuple(range(i * size, (i + 1) * size)) for i in range(count))

    def node(self, device: int) -> int:
        """The node `device` is in."""
        group, first_device, first_node = self._place(device)
        return first_node + (device - first_device) // group.devices_per_node

    def nodes_of(self, device: int) -> Nodes:
        """The run of equal nodes `device` is in."""
        return self._place(device)[0]

    def runs(self, first: int, last: int) -> tuple[int, ...]:
        """The numbers of the runs of equal nodes that the devices from `first` to `last` are in."""
        starts, _ = self._firsts
        return tuple(range(bisect_right(starts, first) - 1, bisect_right(starts, last)))

    def members(self, devices: Iterable[int]) -> Counter[int]:
        """How many of these devices are in each node."""
        return Counter(map(self.node, devices))

    def same_node(self, devices: Iterable[int]) -> bool:
        """Whether all `devices` are in one node."""
        return len({self.node(device) for device in devices}) <= 1

    def kinds(self, devices: Iterable[int] | None = None) -> tuple[Device, ...]:
        """The kinds of devices among these (or all), each once."""
        if len(self.nodes) == 1 or devices is None:
            return tuple(dict.fromkeys(group.device for group in self.nodes))
        return tuple(dict.fromkeys(self.nodes_of(device).device for device in devices))

    def memory_of(self, devices: Iterable[int] | None = None) -> int:
        """Bytes of memory of the smallest of these devices (or all)."""
        return min(kind.memory_bytes for kind in self.kinds(devices))

    def flops(self, dtype: str, devices: Iterable[int] | None = None) -> float:
        """Peak floating-point operations per second in `dtype` of the slowest of these devices (or all)."""
        return min(kind.flops(dtype) for kind in self.kinds(devices))

    def first(self, count: int) -> "Cluster":
        """A cluster of the first `count` devices of this one.

        Raises:
            PlanError: It has fewer, or none are asked for.
        """
        if not 1 <= count <= self.num_devices:
            raise PlanError(
                f"the first {count} devices of the cluster {self.name!r}, which has {self.num_devices}",
                remedy=f"ask for 1 to {self.num_devices}",
            )
        nodes: list[Nodes] = []
        left = count
        for group in self.nodes:
            whole = min(group.count, left // group.devices_per_node)
            rest = (
                min(left - whole * group.devices_per_node, group.devices_per_node)
                if whole < group.count
                else 0
            )
            nodes += [replace(group, count=whole)] if whole else []
            nodes += [replace(group, count=1, devices_per_node=rest)] if rest else []
            left -= whole * group.devices_per_node + rest
        return replace(self, nodes=tuple(nodes))

    def with_memory(self, memory_bytes: int) -> "Cluster":
        """The same cluster, each device with so many bytes of memory."""
        return replace(
            self,
            nodes=tuple(
                replace(group, device=replace(group.device, memory_bytes=memory_bytes))
                for group in self.nodes
            ),
        )

    def _place(self, device: int) -> tuple[Nodes, int, int]:
        """The run of nodes `device` is in, and the first device and the first node of it."""
        first_devices, first_nodes = self._firsts
        index = bisect_right(first_devices, device) - 1
        return self.nodes[index], first_devices[index], first_nodes[index]

    @cached_property
    def _firsts(self) -> tuple[list[int], list[int]]:
        """Per run of nodes its first device and its first node."""
        devices = accumulate((group.num_devices for group in self.nodes[:-1]), initial=0)
        return list(devices), list(accumulate((group.count for group in self.nodes[:-1]), initial=0))
