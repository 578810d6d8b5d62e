"""The work of operators: arithmetic by their rules, and the bytes that one device reads and writes."""

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from superscaler.ir.axes import Axes
from superscaler.ir.float8 import CASTS, WIDE, owner_of
from superscaler.ir.graph import Operator, Phase
from superscaler.ir.kinds import VIEWS
from superscaler.ir.layout import Layout
from superscaler.ir.mesh import Mesh
from superscaler.ir.tensor import DTYPE_BYTES
from superscaler.planner.arithmetic import arithmetic, arithmetic_dtype, attention_scores, share_of_caches
from superscaler.planner.device import Device
from superscaler.planner.efficiency import OperatorClass
from superscaler.planner.operator_class import class_of
from superscaler.planner.operator_cost import operator_seconds
from superscaler.planner.placement import PlacedGraph
from superscaler.planner.step_cost import largest_pieces, local_elements


@dataclass(frozen=True, slots=True)
class Work:
    """What one device does of an operator, in one micro-batch where time is cut."""

    operator_class: OperatorClass
    flops: float
    num_bytes: float
    """Read from memory and written to it."""
    dtype: str
    """In what it computes."""

    def seconds(self, device: Device) -> float:
        """How long it takes a device by its curves."""
        return operator_seconds(self.operator_class, self.flops, self.num_bytes, self.dtype, device)


SCORE_PASSES = {"attention": (2, 2), "attention_backward": (4, 3)}
"""Kind -> how many times all scores are read or written by its products, and by the softmax between them."""
NO_WORK = Work(OperatorClass.POINTWISE, 0.0, 0.0, "float32")


@dataclass(frozen=True)
class PlacedWork:
    """The work of the operators of a placed graph, by their names."""

    placed: PlacedGraph
    is_fused: bool = False
    """Whether neighbours that work point by point are one kernel, as `torch.compile` makes them: what they hand on
    stays in registers."""
    stores_scores: bool = False
    """Whether an attention is made of products and a softmax that store all scores, as before FlashAttention."""

    def parts(self, name: str) -> tuple[Work, ...]:
        """What one device does of an operator, in the kernels that do it one after another."""
        operator = self.placed.graph.by_name[name]
        if self.stores_scores and operator.kind in SCORE_PASSES:
            return self._with_stored_scores(operator)
        if operator.kind in WIDE:
            return self._with_casts(operator)
        return (self.of(name),)

    def of(self, name: str) -> Work:
        """What one device does of an operator; the largest piece counts."""
        if name not in self._work:
            self._work[name] = self._find(self.placed.graph.by_name[name])
        return self._work[name]

    def is_started(self, name: str) -> bool:
        """Whether an operator begins a kernel, and is not a part of that of what it reads."""
        return not any(self._is_handed_on(name, read) for read in self.placed.graph.by_name[name].reads)

    @cached_property
    def _work(self) -> dict[str, Work]:
        return {}

    def _find(self, operator: Operator) -> Work:
        if is_view(operator):
            return NO_WORK
        placed, graph = self.placed, self.placed.graph
        flops = arithmetic(placed.axes, operator) * _causal_share(placed, operator) / self._pieces(operator)
        operator_class = class_of(operator)
        written = [
            self._bytes(name, layout)
            for name, layout in zip(operator.writes, placed.writes(operator), strict=True)
        ]
        read = [
            0.0 if layout is None else self._bytes(name, layout)
            for name, layout in zip(operator.reads, placed.reads(operator), strict=True)
        ]
        if operator_class is OperatorClass.GATHER:
            # of a table, what is picked
            read = [min(one, sum(written)) for one in read]
        if operator.kind == "paged_attention":
            share = share_of_caches(placed.axes, operator)
            read = [size * share if place in (3, 4) else size for place, size in enumerate(read)]
        moved = sum(
            size
            for name, size in (
                *zip(operator.reads, read, strict=True),
                *zip(operator.writes, written, strict=True),
            )
            if not self._is_handed_on(operator.name, name)
        )
        return Work(operator_class, flops, moved, arithmetic_dtype(graph, operator))

    def _with_stored_scores(self, operator: Operator) -> tuple[Work, Work]:
        """Products of all scores, those that a causal mask hides too, and what works on them point by point."""
        whole, (products, passes) = self.of(operator.name), SCORE_PASSES[operator.kind]
        scores = attention_scores(self.placed.axes, operator) / self._pieces(operator)
        width = DTYPE_BYTES[whole.dtype]
        flops = arithmetic(self.placed.axes, operator) / self._pieces(operator)
        return (
            replace(
                whole,
                operator_class=OperatorClass.MATMUL,
                flops=flops,
                num_bytes=whole.num_bytes + products * scores * width,
            ),
            Work(OperatorClass.POINTWISE, scores, passes * scores * width, whole.dtype),
        )

    def _with_casts(self, operator: Operator) -> tuple[Work, Work]:
        """A product of float8 numbers, and the casts before it that none has made in its place.

        A cast reads its operand twice, once for the largest of each row, and writes a byte per element.
        """
        whole, product, casts = self.of(operator.name), 0.0, 0.0
        for kind, name, layout in zip(
            CASTS[operator.kind], operator.reads, self.placed.reads(operator), strict=False
        ):
            assert layout is not None
            elements, wide = local_elements(layout), self._bytes(name, layout)
            product += elements - wide
            if self._casting[kind, name, operator.phase, owner_of(operator)] == operator.name:
                casts += 2 * wide + elements
        return (
            replace(whole, num_bytes=whole.num_bytes + product),
            Work(OperatorClass.POINTWISE, 0.0, casts, "float32"),
        )

    @cached_property
    def _casting(self) -> dict[tuple[str, str, Phase, str], str]:
        """Cast, operand, phase and module -> the first product that wants it, which makes it for all others."""
        found: dict[tuple[str, str, Phase, str], str] = {}
        for operator in self.placed.graph.operators:
            for kind, name in zip(CASTS.get(operator.kind, ()), operator.reads, strict=False):
                found.setdefault((kind, name, operator.phase, owner_of(operator)), operator.name)
        return found

    def _pieces(self, operator: Operator) -> int:
        placement = self.placed.placements[operator.name]
        return prod(placement.mesh.size(axis) for axis in placement.used)

    def _bytes(self, tensor: str, layout: Layout) -> float:
        return local_elements(layout) * DTYPE_BYTES[self.placed.graph.tensors[tensor].dtype]

    def _is_handed_on(self, operator: str, tensor: str) -> bool:
        """Whether a tensor goes from one operator to others of the same kernel, and nowhere else."""
        if not self.is_fused or operator not in self._kernels:
            return False
        source = self._source(tensor)
        if source not in self.placed.graph.writer:
            return False
        kernel = self._kernels.get(self.placed.graph.writer[source].name)
        return kernel is not None and self._users(source) == {kernel}

    def _source(self, tensor: str) -> str:
        """The tensor whose memory this one shares."""
        writer = self.placed.graph.writer.get(tensor)
        return self._source(writer.reads[0]) if writer and is_view(writer) else tensor

    def _users(self, tensor: str) -> set[tuple[Mesh, Phase] | None]:
        """The kernels that read a tensor or a view of it; None for what is no part of one."""
        users: set[tuple[Mesh, Phase] | None] = {None} if tensor in self._kept else set()
        for reader in self.placed.graph.readers[tensor]:
            users |= self._users(reader.writes[0]) if is_view(reader) else {self._kernels.get(reader.name)}
        return users

    @cached_property
    def _kept(self) -> frozenset[str]:
        """Tensors that outlive the operators that read them."""
        graph = self.placed.graph
        return frozenset((*graph.outputs, *graph.updates.values(), *graph.gradients.values()))

    @cached_property
    def _kernels(self) -> dict[str, tuple[Mesh, Phase]]:
        """Operators that may be parts of one kernel -> where and when it runs."""
        return {
            operator.name: (self.placed.placements[operator.name].mesh, self.placed.phases[operator.name])
            for operator in self.placed.graph.operators
            if not is_view(operator)
            and class_of(operator) in (OperatorClass.POINTWISE, OperatorClass.REDUCTION)
        }


def local_shape(axes: Axes, tensor: str, layout: Layout) -> tuple[int, ...]:
    """The shape of the largest piece of a tensor."""
    sizes = iter(largest_pieces(layout))
    return tuple(prod(next(sizes) for _ in parts) for parts in axes.dims[tensor])


def is_view(operator: Operator) -> bool:
    """Whether nothing moves: its result shares the memory of what it reads."""
    return operator.kind in VIEWS or operator.kind == "reshape"


def _causal_share(placed: PlacedGraph, operator: Operator) -> float:
    """Which part of its scores an attention computes: causal, half of them; of the last of n pieces of queries more."""
    if class_of(operator) is not OperatorClass.ATTENTION or not operator.keyword("causal"):
        return 1.0
    placement = placed.placements[operator.name]
    pieces = prod(
        placement.mesh.size(axis)
        for (letter, _), axes in placement.cuts
        if letter == "query"
        for axis in axes
    )
    return 1 - 1 / (2 * pieces)
