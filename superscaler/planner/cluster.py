"""Cluster: devices, their memory and speed, and the links between them."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from superscaler.errors import PlanError

GIB = 2**30
DTYPE_CLASS = {"float64": "float64", "float32": "float32", "bfloat16": "half", "float16": "half"}
"""Which entry of `Cluster.flops_per_second` a dtype uses; integers count as float32."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Equal devices, numbered node by node.

    Raises:
        PlanError: when a figure is not positive or the nodes do not come out whole.
    """

    name: str
    num_devices: int
    devices_per_node: int
    memory_bytes: int
    """Memory of one device."""
    flops_per_second: tuple[tuple[str, float], ...]
    """Peak arithmetic of one device per class of dtypes: ``float64``, ``float32``, ``half``."""
    memory_bandwidth: float
    """Bytes per second between one device and its own memory."""
    intra_node_bandwidth: float
    """Bytes per second that one device sends to devices of its node, in one direction."""
    inter_node_bandwidth: float
    """Bytes per second that one device sends to other nodes while all devices of its node do so."""
    intra_node_latency: float
    """Seconds before the first byte arrives."""
    inter_node_latency: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (int, float)) and value <= 0:
                raise PlanError(
                    f"cluster {self.name!r}: {field.name} is {value}", remedy="give a positive number"
                )
        if self.num_devices > self.devices_per_node and self.num_devices % self.devices_per_node:
            raise PlanError(
                f"cluster {self.name!r}: {self.num_devices} devices "
                f"do not fill nodes of {self.devices_per_node}",
                remedy="make num_devices a multiple of devices_per_node",
            )

    @staticmethod
    def local(num_devices: int) -> "Cluster":
        """One machine of `num_devices` processes; the figures are guesses for a laptop's processor."""
        return Cluster(
            name="local",
            num_devices=num_devices,
            devices_per_node=num_devices,
            memory_bytes=8 * GIB,
            flops_per_second=(("float64", 2.5e10), ("float32", 5e10), ("half", 5e10)),
            memory_bandwidth=1e10,
            intra_node_bandwidth=2e9,
            inter_node_bandwidth=1e9,
            intra_node_latency=5e-5,
            inter_node_latency=1e-4,
        )

    @staticmethod
    def preset(name: str, nodes: int = 1) -> "Cluster":
        """A known machine, `nodes` times.

        Raises:
            PlanError: when there is no such preset; the message lists those there are.
        """
        if name not in PRESETS:
            raise PlanError(f"no cluster preset {name!r}", remedy=f"one of {', '.join(PRESETS)}")
        if nodes < 1:
            raise PlanError(f"cluster {name!r} with {nodes} nodes", remedy="ask for at least one node")
        node = PRESETS[name]
        return replace(node, num_devices=node.devices_per_node * nodes)

    @staticmethod
    def load(path: str | Path) -> "Cluster":
        """Read a cluster from YAML: the fields of this class, on top of an optional ``preset`` and ``nodes``.

        Raises:
            PlanError: when the file is missing, is no mapping, or a field is missing, unknown or no number.
        """
        try:
            document = yaml.safe_load(Path(path).read_text())
        except (OSError, yaml.YAMLError) as error:
            raise PlanError(f"cannot read cluster file {path}: {error}", remedy="give a YAML file") from error
        return _from_document(document, str(path))

    @staticmethod
    def parse(text: str) -> "Cluster":
        """A cluster from a command line: ``local:4``, ``dgx-a100:8`` (nodes), or the path of a YAML file.

        Raises:
            PlanError: when `text` is none of these; the message lists what there is.
        """
        if text.endswith((".yaml", ".yml")):
            return Cluster.load(text)
        name, _, count = text.partition(":")
        known = f"local:DEVICES, {', '.join(f'{preset}:NODES' for preset in PRESETS)}, or a .yaml file"
        if name not in ("local", *PRESETS) or (count and not count.isdecimal()) or (count and int(count) < 1):
            raise PlanError(f"no cluster {text!r}", remedy=f"one of {known}")
        number = int(count or 1)
        return Cluster.local(number) if name == "local" else Cluster.preset(name, number)

    @property
    def devices(self) -> tuple[int, ...]:
        """The numbers of all devices."""
        return tuple(range(self.num_devices))

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
        return device // self.devices_per_node

    def same_node(self, devices: Iterable[int]) -> bool:
        """Whether all `devices` are in one node."""
        return len({self.node(device) for device in devices}) <= 1

    def flops(self, dtype: str) -> float:
        """Peak floating-point operations per second of one device in `dtype`."""
        return dict(self.flops_per_second)[DTYPE_CLASS.get(dtype, "float32")]

    def bandwidth(self, devices: Iterable[int]) -> float:
        """Bytes per second through each member of a ring over `devices`.

        A ring that crosses nodes leaves each node through the links of all its members there.
        """
        members: dict[int, int] = {}
        for device in devices:
            members[self.node(device)] = members.get(self.node(device), 0) + 1
        if len(members) <= 1:
            return self.intra_node_bandwidth
        return min(self.intra_node_bandwidth, self.inter_node_bandwidth * min(members.values()))

    def latency(self, devices: Iterable[int]) -> float:
        """Seconds before the first byte arrives among `devices`."""
        return self.intra_node_latency if self.same_node(devices) else self.inter_node_latency


def _from_document(document: Any, path: str) -> Cluster:
    known = {field.name for field in fields(Cluster)}
    if not isinstance(document, dict):
        raise PlanError(f"cluster file {path} is no mapping", remedy=f"give fields of {sorted(known)}")
    values = dict(document)
    base = {}
    if "preset" in values:
        preset = Cluster.preset(values.pop("preset"), values.pop("nodes", 1))
        base = {name: getattr(preset, name) for name in known}
    unknown, missing = sorted(set(values) - known), sorted(known - set(values) - set(base))
    if unknown or missing:
        fault = f"unknown fields {unknown}" if unknown else f"fields missing: {missing}"
        raise PlanError(
            f"cluster file {path}: {fault}", remedy=f"the fields are preset, nodes, {sorted(known)}"
        )
    try:
        for name in set(values) - {"name", "flops_per_second"}:
            # PyYAML reads 1e9 as text: it wants 1.0e+9
            integral = name in ("num_devices", "devices_per_node", "memory_bytes")
            values[name] = int(float(values[name])) if integral else float(values[name])
        if "flops_per_second" in values:
            speeds = {kind: float(speed) for kind, speed in dict(values["flops_per_second"]).items()}
            fallback = speeds.get("float32", max(speeds.values()))
            values["flops_per_second"] = tuple(
                (kind, speeds.get(kind, fallback)) for kind in ("float64", "float32", "half")
            )
    except (TypeError, ValueError) as error:
        raise PlanError(f"cluster file {path}: {error}", remedy="give numbers") from error
    return Cluster(**{**base, **values})


def _node(
    name: str,
    num_devices: int,
    memory_bytes: int,
    teraflops: tuple[float, float, float],
    gigabytes_per_second: tuple[float, float, float],
) -> Cluster:
    """One node: teraflops in float64, float32, half; GB/s of memory, in the node, out of it, per device."""
    memory, intra, inter = (1e9 * speed for speed in gigabytes_per_second)
    float64, float32, half = (1e12 * speed for speed in teraflops)
    return Cluster(
        name=name,
        num_devices=num_devices,
        devices_per_node=num_devices,
        memory_bytes=memory_bytes,
        flops_per_second=(("float64", float64), ("float32", float32), ("half", half)),
        memory_bandwidth=memory,
        intra_node_bandwidth=intra,
        inter_node_bandwidth=inter,
        # what a small NCCL message takes, to the nearest few microseconds; data sheets do not say
        intra_node_latency=5e-6,
        inter_node_latency=1e-5,
    )


# Peak dense figures of NVIDIA's data sheets; NVLink's total is halved for one direction, and a node's
# network cards are shared evenly by its devices.
PRESETS: dict[str, Cluster] = {
    # DGX-1 and Tesla V100 SXM2 data sheets: 32 GB HBM2 at 900 GB/s, NVLink 300 GB/s; 4 x 100 Gb/s EDR
    "dgx-1-v100": _node("dgx-1-v100", 8, 32 * GIB, (7.8, 15.7, 125.0), (900.0, 150.0, 6.25)),
    # DGX-2 data sheet: 16 V100 of 32 GB behind NVSwitch, 300 GB/s each; 8 x 100 Gb/s
    "dgx-2": _node("dgx-2", 16, 32 * GIB, (7.8, 15.7, 125.0), (900.0, 150.0, 6.25)),
    # DGX A100 and A100 80GB SXM data sheets: HBM2e at 2039 GB/s, NVLink 600 GB/s; 8 x 200 Gb/s HDR
    "dgx-a100": _node("dgx-a100", 8, 80 * GIB, (9.7, 19.5, 312.0), (2039.0, 300.0, 25.0)),
    # DGX H100 and H100 SXM data sheets: HBM3 at 3.35 TB/s, NVLink 900 GB/s; 8 x 400 Gb/s NDR
    "dgx-h100": _node("dgx-h100", 8, 80 * GIB, (34.0, 67.0, 989.5), (3350.0, 450.0, 50.0)),
    # H200 SXM data sheet: 141 GB HBM3e at 4.8 TB/s, otherwise as H100
    "h200": _node("h200", 8, 141 * 10**9, (34.0, 67.0, 989.5), (4800.0, 450.0, 50.0)),
}
