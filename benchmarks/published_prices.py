"""What published systems do that plans of this compiler do not: their operators and messages, priced.

A plan says how a system divides the work. Beside that, Megatron-LM of 2021 wrote all attention scores to memory and
dropped some of them, and ran a layer's last product again, too; torchtitan's float8 doubles the speed of products for
the price of casting what they read, and its asynchronous tensor parallelism sends while it multiplies; Llama 3's
context parallelism gives each device as many scores as any other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from benchmarks.published_training import Row
from superscaler.compiler import CompiledPlan
from superscaler.ir.graph import AGAIN, Operator, Phase
from superscaler.ir.tensor import DTYPE_BYTES
from superscaler.planner.arithmetic import attention_scores
from superscaler.planner.cluster import Cluster, Nodes
from superscaler.planner.device import Device
from superscaler.planner.efficiency import OperatorClass
from superscaler.planner.operator_class import class_of
from superscaler.planner.operator_cost import copy_seconds
from superscaler.planner.operator_work import SCORE_PASSES
from superscaler.planner.prices import Prices
from superscaler.planner.step_cost import local_elements
from superscaler.planner.steps import Step, StepKind

DROPOUT_PASSES = 2.5
"""How many times a dropout of scores reads or writes them all; its mask is of bytes."""
OLD_KERNELS = 0.637
"""What kernels of 2021 that work point by point reach of a device's bandwidth, as a part of today's: fitted."""
CAST_BYTES = 5
"""Per element that a product in float8 reads: to find the largest, to read it again, and to write it."""
PRODUCTS = ("linear", "linear_input_gradient", "linear_weight_gradient")


@dataclass(frozen=True)
class PublishedPrices(Prices):
    """Prices of the system a row was measured with."""

    repeats_last: bool = False
    """Whether a layer's recomputation does its last product again."""
    drops_scores: bool = False
    """Whether attention drops some of its scores."""
    is_float8: bool = False
    """Whether products of layers with weights are in float8."""
    sends_beside: bool = False
    """Whether tensor parallelism sends pieces while it multiplies others."""
    is_balanced: bool = False
    """Whether context parallelism gives all devices as many scores, in spite of the causal mask."""

    def operator(self, name: str) -> float:
        """Of a system that does more, or less, with an operator."""
        if name not in self._published:
            operator = self.placed.graph.by_name[name]
            self._published[name] = self._seconds(operator, super().operator(name))
        return self._published[name]

    def step(self, step: Step, tensor: str) -> float:
        """What a step leaves to wait for."""
        seconds = super().step(step, tensor)
        writer = self.placed.graph.writer.get(tensor)
        if writer and self._is_repeated_last(writer):
            seconds *= 2
        if not self.sends_beside or step.axis != "tp":
            return seconds
        first = seconds / step.before.mesh.size("tp")
        return first + max(0.0, seconds - first - self._multiplying(step, tensor))

    @cached_property
    def _published(self) -> dict[str, float]:
        return {}

    def _seconds(self, operator: Operator, seconds: float) -> float:
        if operator.kind in SCORE_PASSES:
            return seconds * self._share_of_scores(operator) + self._dropout(operator)
        if self.is_float8 and _is_product_of_layer(operator):
            return max(self._in_float8(operator, device) for device in self._kinds_of_device)
        # counted where it runs first: a pipeline waits for forward and backward of a micro-batch alike
        return 2 * seconds if self._is_repeated_last(operator) else seconds

    def _is_repeated_last(self, operator: Operator) -> bool:
        """Whether a product ends a layer that is computed again, whose plan computes all but that again."""
        return (
            self.repeats_last
            and operator.phase is Phase.FORWARD
            and _is_product_of_layer(operator)
            and operator.name + AGAIN not in self.placed.graph.by_name
        )

    def _dropout(self, operator: Operator) -> float:
        if not self.drops_scores:
            return 0.0
        placement = self.placed.placements[operator.name]
        pieces = prod(placement.mesh.size(axis) for axis in placement.used)
        scores = attention_scores(self.placed.axes, operator) / pieces
        moved = DROPOUT_PASSES * scores * DTYPE_BYTES[self.placed.graph.tensors[operator.writes[0]].dtype]
        return max(copy_seconds(moved, device) for device in self._kinds_of_device)

    def _share_of_scores(self, operator: Operator) -> float:
        """Of those the last device computes, which has nearly all of its rows, the average over devices."""
        pieces = self.placed.placements[operator.name].mesh.size("cp") if self.is_balanced else 1
        return 0.5 / (1 - 1 / (2 * pieces))

    def _in_float8(self, operator: Operator, device: Device) -> float:
        flops = tuple((name, 2 * speed) for name, speed in device.flops_per_second)
        read = zip(operator.reads[:2], self.placed.reads(operator), strict=False)
        elements = sum(local_elements(layout) for _, layout in read if layout)
        seconds = self.work(operator.name).seconds(replace(device, flops_per_second=flops))
        return seconds + copy_seconds(CAST_BYTES * elements, device)

    def _multiplying(self, step: Step, tensor: str) -> float:
        """Seconds of the products that read what a step brings together, or write what it takes apart."""
        graph = self.placed.graph
        if step.kind is StepKind.ALL_GATHER:
            readers = [one for one in graph.readers[tensor] if class_of(one).is_product]
            products = [one for one in readers if one.phase is readers[0].phase]
        else:
            products = [graph.writer[tensor]] if tensor in graph.writer else []
        return sum(self.operator(one.name) for one in products if class_of(one).is_product)

    @property
    def _kinds_of_device(self) -> tuple[Device, ...]:
        return self.cluster.kinds()


def prices_of(row: Row, plan: CompiledPlan, cluster: Cluster) -> PublishedPrices:
    """The prices of a row's system on a cluster."""
    is_old = row.source == "M21"
    if is_old:
        cluster = with_curves(cluster, (OperatorClass.POINTWISE,), "memory", OLD_KERNELS)
    return PublishedPrices(
        plan.placed,
        cluster,
        is_fused=is_old or row.compile == "yes",
        stores_scores=is_old,
        repeats_last=is_old,
        drops_scores=is_old,
        is_float8="fp8" in row.dtype,
        sends_beside="async_tp" in row.dtype,
        is_balanced=row.cp > 1,
    )


def with_curves(
    cluster: Cluster, classes: Sequence[OperatorClass], part: str, factor: float, device: str = ""
) -> Cluster:
    """A cluster whose devices, or those of one kind, reach `factor` times as much in a part of some classes' curves."""

    def changed(nodes: Nodes) -> Nodes:
        efficiency = nodes.device.efficiency
        curves = {name: efficiency.curve(name) for name in classes}
        scaled = {
            name: replace(curve, **{part: min(1.0, factor * getattr(curve, part))})
            for name, curve in curves.items()
        }
        return replace(nodes, device=replace(nodes.device, efficiency=efficiency.with_curves(scaled)))

    return replace(
        cluster,
        nodes=tuple(changed(one) if device in ("", one.device.name) else one for one in cluster.nodes),
    )


def _is_product_of_layer(operator: Operator) -> bool:
    return operator.kind in PRODUCTS and any(part.isdecimal() for part in operator.module.split("."))
