"""Prices: seconds of everything a placed graph does on a cluster: operators, communication steps, and copies.

Devices of several kinds that share an operator take as long as the slowest of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from superscaler.ir.layout import Layout
from superscaler.ir.mesh import Mesh
from superscaler.ir.tensor import DTYPE_BYTES
from superscaler.planner.cluster import Cluster
from superscaler.planner.device import Device
from superscaler.planner.operator_cost import copy_seconds, host_copy_seconds
from superscaler.planner.operator_work import PlacedWork, Work, is_view, local_shape
from superscaler.planner.placement import PlacedGraph
from superscaler.planner.profile_database import call_text
from superscaler.planner.step_cost import elements_moved, local_elements, seconds_of_bytes, seconds_per_run
from superscaler.planner.steps import Step


@dataclass(frozen=True)
class Prices:
    """What operators and steps of one placed graph take on a cluster, in seconds."""

    placed: PlacedGraph
    cluster: Cluster
    is_fused: bool = False
    """Whether neighbours that work point by point are one kernel, as `torch.compile` makes them."""
    stores_scores: bool = False
    """Whether attention stores all its scores, as before FlashAttention."""

    def operator(self, name: str) -> float:
        """One run of an operator, by its name in the graph: a `Run` of a plan, a `Compute` of a program."""
        if name not in self._operators:
            kinds = self._kinds(self.placed.placements[name].mesh)
            self._operators[name] = max(self._on_device(name, device) for device in kinds)
        return self._operators[name]

    def step(self, step: Step, tensor: str) -> float:
        """One run of a communication step on a tensor; local ones are free."""
        if step.is_local:
            return 0.0
        return seconds_per_run(step, DTYPE_BYTES[self.placed.graph.tensors[tensor].dtype], self.cluster)

    def steps_together(self, steps: Sequence[tuple[Step, str]]) -> float:
        """One message of several collectives of one kind over one mesh axis, each with its tensor."""
        num_bytes = sum(
            elements_moved(step) * DTYPE_BYTES[self.placed.graph.tensors[tensor].dtype]
            for step, tensor in steps
        )
        return seconds_of_bytes(steps[0][0], num_bytes, self.cluster)

    def copy(self, tensor: str, layout: Layout, *, is_added: bool = False) -> float:
        """Copying the piece of a tensor that one device holds, or adding it to another."""
        moved = (3 if is_added else 2) * self._bytes(tensor, layout)
        return max(copy_seconds(moved, device) for device in self._kinds(layout.mesh))

    def host_copy(self, tensor: str, layout: Layout) -> float:
        """Moving the piece of a tensor that one device holds to host memory, or back."""
        num_bytes = self._bytes(tensor, layout)
        return max(host_copy_seconds(num_bytes, device) for device in self._kinds(layout.mesh))

    def _bytes(self, tensor: str, layout: Layout) -> int:
        return local_elements(layout) * DTYPE_BYTES[self.placed.graph.tensors[tensor].dtype]

    def work(self, name: str) -> Work:
        """What one device does of an operator."""
        return self._work.of(name)

    def _kinds(self, mesh: Mesh) -> tuple[Device, ...]:
        """The kinds of devices of a mesh."""
        if mesh.devices not in self._kinds_of:
            self._kinds_of[mesh.devices] = self.cluster.kinds(mesh.devices)
        return self._kinds_of[mesh.devices]

    @cached_property
    def _kinds_of(self) -> dict[tuple[int, ...], tuple[Device, ...]]:
        return {}

    @cached_property
    def _operators(self) -> dict[str, float]:
        return {}

    @cached_property
    def _work(self) -> PlacedWork:
        return PlacedWork(self.placed, self.is_fused, self.stores_scores)

    def call(self, name: str, device: str) -> str:
        """The call of an operator on a kind of device, as a profile database names it."""
        placed, operator = self.placed, self.placed.graph.by_name[name]
        reads, writes = (
            [self._piece(tensor, layout) for tensor, layout in zip(names, layouts, strict=True)]
            for names, layouts in (
                (operator.reads, placed.reads(operator)),
                (operator.writes, placed.writes(operator)),
            )
        )
        return call_text(operator, reads, writes, device)

    def _piece(self, tensor: str, layout: Layout | None) -> str:
        """Dtype and shape of what one device holds of a tensor; the number of the step is none."""
        shape = list(local_shape(self.placed.axes, tensor, layout)) if layout else []
        return f"{self.placed.graph.tensors[tensor].dtype}{shape}"

    def _on_device(self, name: str, device: Device) -> float:
        if is_view(self.placed.graph.by_name[name]):
            return 0.0
        measured = self.cluster.profiled.seconds
        if measured and (call := self.call(name, device.name)) in measured:
            return measured[call]
        seconds = sum(work.seconds(device) for work in self._work.parts(name))
        return seconds if self._work.is_started(name) else seconds - device.efficiency.launch_seconds
