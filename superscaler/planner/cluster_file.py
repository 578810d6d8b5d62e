"""Clusters in YAML: equal nodes by their figures, on top of a preset if one is named, or several such groups of nodes.

    preset: dgx-a100              name: mixed
    nodes: 4                      groups:
    name: mine                      - {preset: dgx-a100, nodes: 2}
    inter_node_bandwidth: 2e10      - {preset: dgx-1-v100, nodes: 4}

``efficiency``, ``transport`` and ``profiled`` (the file of a profile database, beside this one) are what `superscaler
profile` measures. A file that `save` writes names no preset.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from superscaler.errors import PlanError
from superscaler.planner.cluster import Cluster, Link, Nodes
from superscaler.planner.device import FLOAT8, FLOPS_CLASSES, Device
from superscaler.planner.efficiency import PEAK, Curve, Efficiency, OperatorClass
from superscaler.planner.profile_database import ProfileDatabase
from superscaler.planner.transport import IDEAL, Collective, Measured, Protocol, Transport

NUMBERS = (
    "num_devices", "devices_per_node", "network_cards", "memory_bytes", "memory_bandwidth", "host_bandwidth",
    "intra_node_bandwidth", "intra_node_latency", "intra_node_efficiency",
    "inter_node_bandwidth", "inter_node_latency", "inter_node_efficiency",
)  # fmt: skip
"""`inter_node_bandwidth`: of one device while all devices of its node send."""
INTEGERS = ("num_devices", "devices_per_node", "network_cards", "memory_bytes")
FIELDS = ("name", "device", "flops_per_second", *NUMBERS, "efficiency", "transport", "profiled")
DEFAULTS = {"host_bandwidth": 1.2e10, "intra_node_efficiency": 1.0, "inter_node_efficiency": 1.0}


def load(path: str | Path) -> Cluster:
    """Read a cluster from YAML.

    Raises:
        PlanError: when the file is missing, is no mapping, or a field is missing, unknown or no number.
    """
    try:
        document = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise PlanError(f"cannot read cluster file {path}: {error}", remedy="give a YAML file") from error
    if not isinstance(document, dict):
        raise PlanError(f"cluster file {path} is no mapping", remedy=f"give fields of {sorted(FIELDS)}")
    try:
        cluster = _parse(document, str(path))
    except PlanError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        raise PlanError(
            f"cluster file {path}: {error}",
            remedy="give numbers, and lists and mappings as cluster.save writes them",
        ) from error
    if "profiled" not in document:
        return cluster
    return replace(cluster, profiled=ProfileDatabase.load(Path(path).parent / str(document["profiled"])))


def _parse(document: Mapping[str, Any], path: str) -> Cluster:
    if "groups" not in document:
        return _one(document, path)
    misplaced = set(document) - {"name", "groups", "transport", "profiled"}
    misplaced |= {name for entry in document["groups"] for name in ("transport", "profiled") if name in entry}
    if misplaced or not document["groups"]:
        fault = f"misplaced fields {sorted(misplaced)}" if misplaced else "no groups"
        raise PlanError(
            f"cluster file {path}: {fault}",
            remedy="beside groups, and only there, give name, transport, profiled",
        )
    groups = [_one({"name": "", **entry}, path) for entry in document["groups"]]
    nodes = tuple(run for group in groups for run in group.nodes)
    transport = _transport(document["transport"]) if "transport" in document else groups[0].transport
    return Cluster(str(document.get("name", path)), nodes, transport)


def save(cluster: Cluster, path: str | Path, profiled: str | Path = "") -> None:
    """Write a file that `load` reads; `profiled`: the file of its profile database, relative to this one."""
    groups = [_fields(run) for run in cluster.nodes]
    transport = asdict(cluster.transport) | {
        "measured": {str(name): asdict(measured) for name, measured in cluster.transport.measured}
    }
    transport["protocols"] = [asdict(protocol) for protocol in cluster.transport.protocols]
    document: dict[str, Any] = {"name": cluster.name}
    document |= groups[0] if len(groups) == 1 else {"groups": groups}
    document |= {"profiled": str(profiled)} if profiled else {}
    Path(path).write_text(yaml.safe_dump(document | {"transport": transport}, sort_keys=False))


def _one(document: Mapping[str, Any], path: str) -> Cluster:
    """A cluster of equal nodes, or of the nodes of a preset with some figures replaced."""
    values = dict(document)
    base: dict[str, Any] = {}
    transport = IDEAL
    if "preset" in values:
        preset = Cluster.preset(str(values.pop("preset")), int(values.pop("nodes", 1)))
        transport = preset.transport
        base = {"name": preset.name, **_fields(preset.nodes[0])}
    missing = set(FIELDS) - set(values) - set(base) - set(DEFAULTS)
    missing -= {"device", "network_cards", "efficiency", "transport", "profiled"}
    unknown = set(values) - set(FIELDS)
    if unknown or missing:
        fault = f"unknown fields {sorted(unknown)}" if unknown else f"fields missing: {sorted(missing)}"
        raise PlanError(
            f"cluster file {path}: {fault}", remedy=f"the fields are preset, nodes, {sorted(FIELDS)}"
        )
    if "transport" in values:
        transport = _transport(values["transport"])
    merged = _with_numbers({**DEFAULTS, **base, **values}, replaced=set(values))
    return Cluster(str(merged["name"]), (_nodes(merged),), transport)


def _with_numbers(values: dict[str, Any], replaced: set[str]) -> dict[str, Any]:
    # PyYAML reads 1e9 as text: it wants 1.0e+9
    numbers = {name: float(values[name]) for name in NUMBERS if name in values}
    merged = {**values, **numbers, **{name: int(numbers[name]) for name in INTEGERS if name in numbers}}
    if "num_devices" in replaced and "devices_per_node" not in values:
        merged["devices_per_node"] = merged["num_devices"]
    return merged


def _nodes(values: Mapping[str, Any]) -> Nodes:
    name, num_devices = values["name"], values["num_devices"]
    per_node = min(values["devices_per_node"], num_devices) if num_devices > 0 else num_devices
    for field in ("num_devices", "devices_per_node", "network_cards"):
        if values.get(field, 1) <= 0:
            raise PlanError(f"cluster {name!r}: {field} is {values[field]}", remedy="give a positive number")
    if num_devices % per_node:
        raise PlanError(
            f"cluster {name!r}: {num_devices} devices do not fill nodes of {per_node}",
            remedy="make num_devices a multiple of devices_per_node",
        )
    speeds = {kind: float(speed) for kind, speed in dict(values["flops_per_second"]).items()}
    fallback = speeds.get("float32", max(speeds.values()))
    device = Device(
        str(values.get("device", name)),
        values["memory_bytes"],
        (
            *((kind, speeds.get(kind, fallback)) for kind in FLOPS_CLASSES),
            *((kind, speeds[kind]) for kind in (FLOAT8,) if kind in speeds),
        ),
        values["memory_bandwidth"],
        values["host_bandwidth"],
        _efficiency(values["efficiency"]) if "efficiency" in values else PEAK,
    )
    cards = values.get("network_cards", per_node)
    link, network = (
        Link(*(values[f"{place}_node_{what}"] for what in ("bandwidth", "latency", "efficiency")))
        for place in ("intra", "inter")
    )
    network = replace(network, bandwidth=network.bandwidth * per_node / cards)
    return Nodes(num_devices // per_node, per_node, device, link, network, cards)


def _fields(nodes: Nodes) -> dict[str, Any]:
    device, link, network = nodes.device, nodes.link, nodes.network
    efficiency: dict[str, Any] = {"launch_seconds": device.efficiency.launch_seconds}
    efficiency |= {str(name): asdict(curve) for name, curve in device.efficiency.curves}
    return {
        "num_devices": nodes.num_devices,
        "devices_per_node": nodes.devices_per_node,
        "device": device.name,
        "memory_bytes": device.memory_bytes,
        "flops_per_second": dict(device.flops_per_second),
        "memory_bandwidth": device.memory_bandwidth,
        "host_bandwidth": device.host_bandwidth,
        "intra_node_bandwidth": link.bandwidth,
        "intra_node_latency": link.latency,
        "intra_node_efficiency": link.efficiency,
        "inter_node_bandwidth": network.bandwidth * nodes.cards / nodes.devices_per_node,
        "inter_node_latency": network.latency,
        "inter_node_efficiency": network.efficiency,
        "network_cards": nodes.cards,
        "efficiency": efficiency,
    }


def _efficiency(document: Mapping[str, Any]) -> Efficiency:
    """Of curves per class; classes that are not named reach the peak."""
    curves = {
        OperatorClass(name): Curve(**_floats(curve))
        for name, curve in document.items()
        if name != "launch_seconds"
    }
    return replace(PEAK, launch_seconds=float(document.get("launch_seconds", 0.0))).with_curves(curves)


def _transport(document: Mapping[str, Any]) -> Transport:
    measured = {
        Collective(name): Measured(**_floats(given)) for name, given in document.get("measured", {}).items()
    }
    return Transport(
        str(document.get("name", "")),
        float(document.get("launch_seconds", 0.0)),
        tuple(
            Protocol(**protocol)
            for protocol in document.get("protocols", ({"latency": 1.0, "bandwidth": 1.0},))
        ),
        bool(document.get("has_trees", False)),
        tuple(sorted(measured.items())),
    )


def _floats(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}
