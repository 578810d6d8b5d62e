"""Communication: every move of a plan, with its bytes, how often a step makes it, among which devices, and why.

Bytes are what one device sends, by the usual count: of n devices in a ring each passes on (n - 1) / n of the whole
in an all-gather or a reduce-scatter, twice that in an all-reduce, and (n - 1) / n of its piece in an all-to-all.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import prod

from superscaler.ir.graph import Phase
from superscaler.ir.layout import Layout
from superscaler.ir.mesh import TIME, Mesh, format_devices
from superscaler.ir.tensor import DTYPE_BYTES
from superscaler.planner.exchange import exchange_moves
from superscaler.planner.materialize import MaterializedGraph, Transfer
from superscaler.planner.reasons import reason
from superscaler.planner.steps import Step, StepKind

PHASE_NAMES = {
    Phase.PREPARE: "prepare",
    Phase.FORWARD: "forward",
    Phase.BACKWARD: "backward",
    Phase.WEIGHT: "weight gradients",
    Phase.UPDATE: "update",
}


@dataclass(frozen=True)
class Movement:
    """One communication step of a plan, as often as a training step makes it."""

    tensor: str
    phase: Phase
    step: Step
    element_bytes: int
    times: int
    """How often per training step: once per micro-batch in the forward and the backward."""
    ends: tuple[int, int]
    """The stages it leaves and reaches; the same for a collective."""
    reason: str

    @property
    def kind(self) -> StepKind:
        """Which collective, or a message."""
        return self.step.kind

    @property
    def axis(self) -> str:
        """The mesh axis its groups lie along; empty for messages between stages."""
        return self.step.axis

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The devices of each group, in the order of the axis; of a message all that send."""
        mesh = self.step.before.mesh
        if not self.axis:
            return (mesh.devices,)
        return tuple(dict.fromkeys(mesh.group(self.axis, device) for device in mesh.devices))

    def bytes_sent(self, device: int) -> Fraction:
        """What `device` sends each time; an average over its group where their pieces differ."""
        before = self.step.before
        if device not in before.mesh.devices:
            return Fraction(0)
        if self.kind is StepKind.EXCHANGE:
            moves = exchange_moves(self.step)
            sent = (m.num_elements for m in moves if m.source == device != m.target)
            return Fraction(self.element_bytes * sum(sent))
        if self.kind is StepKind.SEND:
            partner = self.step.after.mesh.devices[before.mesh.devices.index(device)]
            return Fraction(self.element_bytes * _held(before, device) if partner != device else 0)
        count = before.mesh.size(self.axis)
        layout = self.step.after if self.kind is StepKind.ALL_GATHER else before
        return Fraction(self._rounds * self.element_bytes * (count - 1) * _held(layout, device), count)

    @property
    def _rounds(self) -> int:
        """How often a ring goes round: a log-sum-exp is a maximum and a sum."""
        if self.kind is not StepKind.ALL_REDUCE:
            return 1
        return 4 if self.step.before.reducer == "logsumexp" else 2

    @cached_property
    def most_bytes(self) -> Fraction:
        """What the device that sends most sends each time."""
        return max(map(self.bytes_sent, senders(self.step)))

    @property
    def place(self) -> str:
        """Print as ``over tp (stage 0)`` or ``stage 0 -> stage 1``."""
        if self.axis:
            return f"over {self.axis} (stage {self.ends[0]})"
        return f"stage {self.ends[0]} -> stage {self.ends[1]}"


@dataclass(frozen=True)
class Communication:
    """All that a plan communicates in one training step, or in one run for inference."""

    movements: tuple[Movement, ...]

    def __iter__(self) -> Iterator[Movement]:
        return iter(self.movements)

    def __len__(self) -> int:
        return len(self.movements)

    @cached_property
    def bytes_sent(self) -> Mapping[int, Mapping[StepKind, Fraction]]:
        """What each device that sends anything sends per training step, by kind."""
        by_stage: dict[Mesh, list[Movement]] = {}
        for movement in self.movements:
            by_stage.setdefault(movement.step.before.mesh, []).append(movement)
        sent: dict[int, dict[StepKind, Fraction]] = {}
        for mesh, movements in by_stage.items():
            alike = all(len(senders(movement.step)) == 1 for movement in movements)
            totals = [_totals(movements, device) for device in (mesh.devices[:1] if alike else mesh.devices)]
            for device, total in zip(
                mesh.devices, totals * len(mesh.devices) if alike else totals, strict=True
            ):
                known = sent.get(device)  # of another stage on this device
                sent[device] = total if known is None else _sum(known, total)
        return sent

    @property
    def bytes_per_device(self) -> Fraction:
        """What the device that sends most sends per training step."""
        return max(
            (sum(kinds.values(), Fraction(0)) for kinds in self.bytes_sent.values()), default=Fraction(0)
        )

    def __str__(self) -> str:
        """The table: moves that differ only in the number of their layer share a row; then the totals."""
        if not self.movements:
            return "communication per step: none"
        return "\n".join([*self._lines(), *self._sums()])

    def table(self) -> tuple[tuple[str, str, str, int, Fraction, str], ...]:
        """Phase, what, devices, times per step, bytes each time, reason; of moves alike but for their layer one row."""
        rows: dict[tuple, list[Movement]] = {}
        for movement in self.movements:
            folded = re.sub(r"(?<=\.)\d+(?=[./])", "*", movement.reason)
            place = movement.phase, movement.kind, movement.axis, movement.groups, movement.most_bytes
            rows.setdefault((*place, folded), []).append(movement)
        found = []
        for (phase, kind, axis, groups, each, why), members in rows.items():
            devices = " | ".join(map(format_devices, groups[:2])) + (" | ..." if len(groups) > 2 else "")
            over = f"{axis} {devices}" if axis else f"{devices} -> {_receivers(members[0])}"
            times = sum(member.times for member in members)
            found.append((PHASE_NAMES[phase], str(kind), over, times, each, why))
        return tuple(found)

    def _lines(self) -> list[str]:
        cells = [("phase", "what", "devices", "times", "bytes", "reason")]
        cells += [
            (phase, kind, over, f"{times} x", _number(each), why)
            for phase, kind, over, times, each, why in self.table()
        ]
        widths = [max(len(row[i]) for row in cells) for i in range(5)]
        return [
            "  ".join([*(cell.ljust(w) for cell, w in zip(row[:5], widths, strict=True)), row[5]])
            for row in cells
        ]

    def _sums(self) -> list[str]:
        """What each device sends, by kind; devices that send the same share a line."""
        alike: dict[tuple, list[int]] = {}
        for device, kinds in self.bytes_sent.items():
            alike.setdefault(tuple(kinds.items()), []).append(device)
        lines = []
        for sent, devices in alike.items():
            parts = ", ".join(f"{kind} {_number(size)}" for kind, size in sent)
            total = sum((size for _, size in sent), Fraction(0))
            lines.append(
                f"sent per step by each of {format_devices(tuple(devices))}: {_number(total)} bytes"
                + (f" ({parts})" if parts else "")
            )
        return lines


def find_communication(materialized: MaterializedGraph, micro_batches: int) -> Communication:
    """Every communication step of a materialized graph that runs in so many micro-batches."""
    found = []
    for phase, events in materialized.events.items():
        times = micro_batches if phase.is_repeated else 1
        for event in events:
            if isinstance(event, Transfer) and not event.step.is_local:
                found.append(_movement(materialized, phase, event, times))
    # between stages on one device nothing leaves it
    return Communication(tuple(movement for movement in found if movement.most_bytes))


def _movement(materialized: MaterializedGraph, phase: Phase, transfer: Transfer, times: int) -> Movement:
    tensor = materialized.values[transfer.read].tensor
    why = transfer.reason.partition(" as ")[0]
    if transfer.step.axis:
        why = f"{why}: {reason(materialized.placed, tensor, transfer.step)}"
    width = DTYPE_BYTES[materialized.graph.tensors[tensor].dtype]
    before, after = (
        materialized.stages.index(end.mesh) for end in (transfer.step.before, transfer.step.after)
    )
    return Movement(tensor, phase, transfer.step, width, times, (before, after), why)


def _totals(movements: list[Movement], device: int) -> dict[StepKind, Fraction]:
    totals: dict[StepKind, Fraction] = {}
    for movement in movements:
        sent = movement.times * movement.bytes_sent(device)
        if sent:
            totals[movement.kind] = totals.get(movement.kind, Fraction(0)) + sent
    return totals


def _sum(one: Mapping[StepKind, Fraction], other: Mapping[StepKind, Fraction]) -> dict[StepKind, Fraction]:
    return {kind: one.get(kind, Fraction(0)) + other.get(kind, Fraction(0)) for kind in {**one, **other}}


def _held(layout: Layout, device: int) -> int:
    """Elements of a device's piece; in the example, of the first micro-batch."""
    coordinates = {**layout.mesh.coordinates(device), TIME: 0}
    bounds = (layout.interval(dim, coordinates) for dim in range(len(layout.sizes)))
    return prod(int(stop) - int(start) for start, stop in bounds)


def senders(step: Step) -> tuple[int, ...]:
    """Devices that stand for all that send: one, where all pieces have one size."""
    layout = step.before
    devices = layout.mesh.devices
    is_even = all(layout.is_even(dim) for dim in range(len(layout.sizes)))
    if step.kind is StepKind.EXCHANGE or not is_even:
        return devices
    is_handed_on = step.kind is StepKind.SEND and not set(devices).isdisjoint(step.after.mesh.devices)
    return devices if is_handed_on else devices[:1]


def _receivers(movement: Movement) -> str:
    return format_devices(movement.step.after.mesh.devices)


def _number(size: Fraction) -> str:
    return str(size) if size.denominator == 1 else f"{float(size):.1f}"
