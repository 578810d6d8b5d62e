"""From the traced FX graph to a Graph: names, roles and a smaller vocabulary, nothing else changed.

Aliases and copies vanish (the graph is functional), the reshaping family becomes ``reshape``, tensors of one
number become ``full``, and a mean becomes a sum and a division by the whole count, so that it stays right
when the sum is cut.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch.fx import GraphModule, Node

from superscaler.errors import TraceError
from superscaler.ir.dynamic import Symbols
from superscaler.ir.graph import Graph, Operator, Phase, Ref, drop_unread
from superscaler.ir.kind_tables.losses import CLASS_LOSSES, MEAN, REDUCTION_AT, SUM
from superscaler.ir.kinds import output_labels
from superscaler.ir.provenance import note_of
from superscaler.ir.size import Requirement, Size, in_brackets
from superscaler.ir.tensor import DTYPE_BYTES, Role, Tensor

_ALIASES = {
    "aten.clone",
    "aten.detach",
    "aten.alias",
    "aten.lift_fresh_copy",
    "aten.lift_fresh",
    "aten.contiguous",
}
_RESHAPES = {
    "aten.view", "aten._unsafe_view", "aten._reshape_alias", "aten.reshape", "aten._reshape_copy",
    "aten.unsqueeze", "aten.squeeze", "aten.squeeze.dim", "aten.squeeze.dims",
}  # fmt: skip
_CONSTANTS = {
    "aten.zeros": 0, "aten.ones": 1, "aten.full": None,
    "aten.zeros_like": 0, "aten.ones_like": 1, "aten.full_like": None,
    "aten.empty.memory_format": 0, "aten.empty_like": 0, "aten.new_empty": 0,
    "aten.new_zeros": 0, "aten.new_ones": 1, "aten.new_full": None, "aten.scalar_tensor": None,
}  # fmt: skip
"""Tensors of one number, and the number (None: the last argument): no other tensor's values matter."""
_NUMBERS = (torch.SymInt, torch.SymFloat, torch.SymBool)
"""What a model computes from sizes that vary: part of the arguments, not of the graph."""
_IGNORED_KEYWORDS = {"device", "layout", "pin_memory", "memory_format", "requires_grad"}


def import_fx(
    captured: GraphModule,
    name: str,
    *,
    parameters: Sequence[str],
    buffers: Sequence[str],
    inputs: Sequence[str],
    trainable: Sequence[str],
    overwritten: Sequence[str] = (),
    step: str,
    scale: str = "",
    symbols: Symbols | None = None,
) -> Graph:
    """Translate a traced joint graph.

    Its placeholders are parameters, buffers, inputs, step, and what the loss is multiplied by where that is asked
    for, in order. Its results are the loss and the gradients of `trainable`, or the outputs where that is empty,
    then the new values of `overwritten` buffers.

    Raises:
        TraceError: An operator writes into its inputs or returns something that is no tensor.
    """
    roles = (
        [Role.PARAMETER] * len(parameters)
        + [Role.BUFFER] * len(buffers)
        + [Role.INPUT] * len(inputs)
        + [Role.STEP]
        + [Role.ACTIVATION] * bool(scale)
    )
    labels = [*parameters, *buffers, *inputs, step, *([scale] if scale else [])]
    if symbols:
        symbols.requirements()  # the sizes are read in their light
    importer = _Importer(captured, symbols)
    placeholders = [node for node in captured.graph.nodes if node.op == "placeholder"]
    for node, label, role in zip(placeholders, labels, roles, strict=True):
        importer.add_tensor(node, label, role)
    for node in captured.graph.nodes:
        importer.visit(node)
    results = [importer.names.get(node) if node is not None else None for node in _results(captured)]
    results, fresh = results[: len(results) - len(overwritten)], results[len(results) - len(overwritten) :]
    outputs, gradients = (results[:1], results[1:]) if trainable else (results, [])
    by_parameter = {key: gradient for key, gradient in zip(trainable, gradients, strict=True) if gradient}
    for gradient in by_parameter.values():
        importer.tensors[gradient] = replace(importer.tensors[gradient], role=Role.GRADIENT)
    gradient_names = _with_summands(set(by_parameter.values()), importer.operators)
    graph = Graph(
        name,
        importer.tensors,
        tuple(_widening(operator, importer.tensors, gradient_names) for operator in importer.operators),
        inputs=tuple(inputs),
        outputs=tuple(output for output in outputs if output),
        updates={name: value for name, value in zip(overwritten, fresh, strict=True) if value},
        gradients=by_parameter,
        values=importer.constants,
        sizes=symbols.hints if symbols else {},
        requirements=_each_once(symbols.requirements() if symbols else (), importer.required),
    )
    return drop_unread(graph)


def _with_summands(gradients: set[str], operators: Sequence[Operator]) -> set[str]:
    """Gradients, and what they are sums of, where a parameter is used several times."""
    for operator in reversed(operators):
        if operator.kind == "aten.add.Tensor" and operator.writes[0] in gradients:
            gradients = gradients | set(operator.reads)
    return gradients


def _widening(operator: Operator, tensors: Mapping[str, Tensor], gradients: set[str]) -> Operator:
    """A cast of a gradient to more bits loses nothing: summands are cast, and added up in the wider type."""
    if operator.kind != "aten._to_copy" or operator.writes[0] not in gradients:
        return operator
    narrow, wide = (tensors[name].dtype for name in (operator.reads[0], operator.writes[0]))
    if "float" not in narrow or DTYPE_BYTES[wide] <= DTYPE_BYTES[narrow]:
        return operator
    return replace(operator, kind="widen", arguments=(Ref(0), f"torch.{wide}"), keywords=())


def _each_once(*groups: Sequence[Requirement]) -> tuple[Requirement, ...]:
    """Requirements without those whose condition an earlier one has."""
    found: dict[str, Requirement] = {}
    for requirement in itertools.chain(*groups):
        found.setdefault(requirement.condition, requirement)
    return tuple(found.values())


def _results(captured: GraphModule) -> list[Node | None]:
    (output,) = (node for node in captured.graph.nodes if node.op == "output")
    result = output.args[0]
    return list(result) if isinstance(result, (tuple, list)) else [result]


def _row_major_strides(node: Node) -> tuple[Any, ...]:
    """The arguments of an ``as_strided`` that reads a tensor in row-major order.

    Raises:
        TraceError: The tensor lies differently in memory, so the call means something that a graph cannot say.
    """
    source = node.args[0].meta["val"]  # type: ignore[union-attr]
    if not source.is_contiguous() or source.storage_offset():
        raise TraceError(
            f"{kind_of(node.target)} looks at the memory of a tensor that is a view",
            where=note_of(node.meta).get("source", ""),
            remedy="call .contiguous() on the tensor first, or index it",
        )
    return tuple(list(item) if isinstance(item, (list, tuple)) else item for item in node.args)


def _group_norm(
    x: Any, weight: Any, bias: Any, batch: int, channels: int, space: int, groups: int, eps: float
) -> Any:
    return "group_norm", (x, weight, bias), {"group_size": channels // groups, "eps": eps}


def _group_norm_backward(
    dy: Any,
    x: Any,
    mean: Any,
    rstd: Any,
    weight: Any,
    batch: int,
    channels: int,
    space: int,
    groups: int,
    wanted: Any,
) -> Any:
    return (
        "group_norm_backward",
        (dy, x, mean, rstd, weight),
        {"group_size": channels // groups, "wanted": wanted},
    )


_GROUP_NORMS: dict[str, Callable[..., Any]] = {
    "aten.native_group_norm": _group_norm,
    "aten.native_group_norm_backward": _group_norm_backward,
}


@dataclass(frozen=True, slots=True)
class _Named:
    """Stands among arguments for a tensor that no node stands for."""

    name: str


def _divided(value: Any, divisor: Any) -> tuple[str, tuple[Any, ...]]:
    """The kind and the arguments of a division by a number or a tensor."""
    return "aten.div.Scalar" if isinstance(divisor, float) else "aten.div.Tensor", (value, divisor)


def _reduction(loss: Node, kind: str) -> Any:
    at = REDUCTION_AT[kind]
    return loss.args[at] if len(loss.args) > at else loss.kwargs.get("reduction", MEAN)


class _Importer:
    """The translation so far: FX node -> tensor name(s)."""

    def __init__(self, captured: GraphModule, symbols: Symbols | None) -> None:
        self.captured = captured
        self.symbols = symbols
        self.required: list[Requirement] = []
        """What the model asks of sizes that vary, beyond torch's guards."""
        self.tensors: dict[str, Tensor] = {}
        self.names: dict[Node, Any] = {}
        self.operators: list[Operator] = []
        self.constants: dict[str, torch.Tensor] = {}
        self.used: Counter[str] = Counter()
        self.phase = Phase.FORWARD

    def add_tensor(self, node: Node, name: str, role: Role) -> None:
        value = node.meta["val"]
        self.tensors[name] = Tensor(name, self.shape(value), dtype_name(value.dtype), role)
        self.names[node] = name

    def shape(self, value: torch.Tensor) -> tuple[int, ...]:
        """The shape of a traced tensor, with Sizes where it varies."""
        return tuple(value.shape) if self.symbols is None else self.symbols.shape_of(value)

    def numbers(self, values: Sequence[Any]) -> tuple[int, ...]:
        """Numbers of the trace, with Sizes where they vary."""
        return tuple(values) if self.symbols is None else tuple(map(self.symbols.size, values))

    def visit(self, node: Node) -> None:
        if node.op == "get_attr":
            self._constant(node)
        elif node.op == "call_function" and not isinstance(node.meta.get("val"), _NUMBERS):
            self._call(node)

    def _constant(self, node: Node) -> None:
        value = getattr(self.captured, str(node.target))
        name = f"constant{len(self.constants)}"
        self.constants[name] = value.detach()
        self.tensors[name] = Tensor(name, tuple(value.shape), dtype_name(value.dtype), Role.BUFFER)
        self.names[node] = name

    def _call(self, node: Node) -> None:
        kind = kind_of(node.target)
        if kind == "getitem":
            self.names[node] = self.names[node.args[0]][node.args[1]]  # type: ignore[index]
            return
        if kind in _ALIASES or (kind == "aten._to_copy" and self._same_dtype(node)):
            self.names[node] = self.names[node.args[0]]  # type: ignore[index]
            return
        if kind == "aten.pow.Tensor_Scalar" and node.args[1] == 1 and self._same(node, node.args[0]):
            self.names[node] = self.names[node.args[0]]  # type: ignore[index]  # as autograd has it of a square
            return
        if kind == "aten.copy" and self._same(node, node.args[1]):
            self.names[node] = self.names[node.args[1]]  # type: ignore[index]
            return
        if kind == "aten.cat":
            self._cat(node)
            return
        if kind.startswith("aten.mean"):
            self._mean(node)
            return
        if kind == "aten.convolution_backward":
            self._convolution_backward(node)
            return
        if kind in REDUCTION_AT and _reduction(node, kind) == MEAN:
            self._mean_loss(node, kind)
            return
        if kind == "aten.as_strided_scatter" and self._same_strides(node) and self._same(node, node.args[1]):
            self.names[node] = self.names[node.args[1]]  # type: ignore[index]
            return
        if kind == "aten.as_strided" and self._same_strides(node):
            self.names[node] = self.names[node.args[0]]  # type: ignore[index]
            return
        arguments, keywords = node.args, node.kwargs
        if kind in _CONSTANTS:
            value = node.meta["val"]
            fill = _CONSTANTS[kind] if _CONSTANTS[kind] is not None else arguments[-1]
            kind, arguments, keywords = "full", (list(self.shape(value)), fill), {"dtype": value.dtype}
        elif kind in _RESHAPES:
            self._require_what_stays(node, kind)
            kind, arguments = "reshape", (node.args[0], list(self.shape(node.meta["val"])))
        elif kind == "aten.repeat":
            kind, arguments = "repeat", (node.args[0], list(self.shape(node.meta["val"])))
        elif kind in ("aten.as_strided", "aten.as_strided_scatter"):
            kind, arguments = kind.removeprefix("aten."), _row_major_strides(node)
        elif kind in _GROUP_NORMS:
            kind, arguments, keywords = _GROUP_NORMS[kind](*node.args)
        elif kind == "aten.embedding":
            kind, arguments, keywords = "embedding", node.args[:2], {}
        elif kind == "aten.embedding_dense_backward" and node.args[3] == -1 and not node.args[4]:
            kind, arguments, keywords = "embedding_backward", node.args[:2], {"num_rows": node.args[2]}
        self._operator(node, kind, arguments, keywords, node.meta["val"])

    def _cat(self, node: Node) -> None:
        """Operands without elements, such as a cache before the first token, add nothing."""
        parts = [part for part in node.args[0] if 0 not in self.shape(part.meta["val"])]  # type: ignore[union-attr]
        if len(parts) == 1 and self._same(node, parts[0]):
            self.names[node] = self.names[parts[0]]
            return
        self._operator(node, "aten.cat", (parts, *node.args[1:]), node.kwargs, node.meta["val"])

    def _require_what_stays(self, node: Node, kind: str) -> None:
        """A squeeze of a dim whose size varies leaves it there, as long as it has more than one element."""
        if not kind.startswith("aten.squeeze"):
            return
        shape = self.shape(node.args[0].meta["val"])  # type: ignore[union-attr]
        dims = node.args[1] if len(node.args) > 1 else range(len(shape))
        for dim in dims if isinstance(dims, Sequence) else [dims]:
            size = shape[dim]  # type: ignore[index]
            if isinstance(size, Size):
                reason = note_of(node.meta).get("source", "") or "the model"
                self.required.append(Requirement(f"{in_brackets(size)} != 1", reason))

    def _same_dtype(self, node: Node) -> bool:
        return node.meta["val"].dtype == node.args[0].meta["val"].dtype  # type: ignore[union-attr]

    def _same_strides(self, node: Node) -> bool:
        """Whether nothing but the memory layout is spoken of, which a graph does not have."""
        value, source = node.meta["val"], node.args[0].meta["val"]  # type: ignore[union-attr]
        strides = [
            [stride for size, stride in zip(self.shape(x), self.numbers(x.stride()), strict=True) if size > 1]
            for x in (value, source)
        ]
        return self.shape(value) == self.shape(source) and strides[0] == strides[1]

    def _same(self, node: Node, source: Any) -> bool:
        value, other = node.meta["val"], source.meta["val"]
        return (self.shape(value), value.dtype) == (self.shape(other), other.dtype)

    def _mean(self, node: Node) -> None:
        source, dims, keep = (*node.args, None, False)[:3] if len(node.args) < 3 else node.args[:3]
        shape = self.shape(source.meta["val"])  # type: ignore[union-attr]
        dims = list(range(len(shape))) if dims is None else [dim % len(shape) for dim in dims]  # type: ignore[union-attr]
        self._operator(node, "aten.sum.dim_IntList", (source, dims, bool(keep)), {}, node.meta["val"])
        count = prod(shape[dim] for dim in dims)
        divisor = count if isinstance(count, Size) else float(count)
        self._operator(node, "aten.div.Scalar", (node, divisor), {}, node.meta["val"])

    def _mean_loss(self, node: Node, kind: str) -> None:
        """A loss that is a mean is a sum and a division; its gradient is that of a sum, from a divided gradient."""
        at, arguments = REDUCTION_AT[kind], list(node.args)
        arguments[at:] = [*[None] * (at - len(arguments)), SUM, *arguments[at + 1 :]]
        keywords = {key: value for key, value in node.kwargs.items() if key != "reduction"}
        is_backward, is_class = kind.endswith("_backward"), kind in CLASS_LOSSES
        losses = [source.meta["val"].shape for source in arguments[is_backward : 2 + is_backward]]  # type: ignore[union-attr]
        count = float(prod(torch.broadcast_shapes(*losses))) if not is_class else None
        if is_backward:
            divisor = arguments[-1] if is_class else count
            self._operator(node, *_divided(arguments[0], divisor), {}, arguments[0].meta["val"])  # type: ignore[union-attr]
            self._operator(node, kind, (node, *arguments[1:]), keywords, node.meta["val"])
            return
        self._operator(node, kind, arguments, keywords, node.meta["val"])
        if not is_class:
            self._operator(node, *_divided(node, count), {}, node.meta["val"])
            return
        total, weight = self.names[node]
        self._operator(node, *_divided(_Named(total), _Named(weight)), {}, node.meta["val"][0])
        self.names[node] = [self.names[node], weight]

    def _convolution_backward(self, node: Node) -> None:
        """Up to three gradients, each an operator of its own, as for a linear."""
        dy, x, weight, _, *options, wanted = node.args
        meta = {source: source.meta["val"] for source in (dy, x, weight)}  # type: ignore[union-attr]
        space = [dim for dim in range(meta[dy].dim()) if dim != 1]
        calls = [
            ("convolution_input_gradient", (dy, weight, list(meta[x].shape), *options)),
            ("convolution_weight_gradient", (dy, x, list(meta[weight].shape), *options)),
            ("aten.sum.dim_IntList", (dy, space, False)),
        ]
        names = []
        for (kind, arguments), value, needed in zip(calls, node.meta["val"], wanted, strict=True):  # type: ignore[arg-type]
            if needed:
                self._operator(node, kind, arguments, {}, value)
            names.append(self.names[node] if needed else None)
        self.names[node] = names

    def _operator(self, node: Node, kind: str, arguments: Any, keywords: Any, value: Any) -> None:
        note = note_of(node.meta)
        if note.get("phase") == "B":
            self.phase = Phase.BACKWARD
        reads: list[str] = []
        refs = self._arguments(arguments, reads)
        kept = {
            key: item for key, item in keywords.items() if key not in _IGNORED_KEYWORDS and item is not None
        }
        keyword_refs = tuple((key, self._arguments(item, reads)) for key, item in kept.items())
        name = self._unique(f"{note['module']}/" if note.get("module") else "", kind)
        values = value if isinstance(value, (tuple, list)) else [value]
        labels = output_labels(kind, len(values))
        names = [
            f"{name}.{label}" if label else name if item is not None else None
            for label, item in zip(labels, values, strict=True)
        ]
        for tensor, item in zip(names, values, strict=True):
            if item is None:
                continue
            if not isinstance(item, torch.Tensor):
                raise TraceError(
                    f"the operator {kind} returns {type(item).__name__}, not tensors",
                    where=note.get("source", ""),
                    remedy="keep such values out of the traced part of the model",
                )
            assert tensor is not None
            self.tensors[tensor] = Tensor(tensor, self.shape(item), dtype_name(item.dtype), Role.ACTIVATION)
        self.names[node] = names if isinstance(value, (tuple, list)) else names[0]
        writes = tuple(
            tensor
            for tensor, item in zip(names, values, strict=True)
            if item is not None and tensor is not None
        )
        self.operators.append(
            Operator(
                name, kind, tuple(reads), writes, refs, keyword_refs, self.phase,
                note.get("module", ""), note.get("source", ""), note.get("call", -1),
            )
        )  # fmt: skip

    def _arguments(self, value: Any, reads: list[str]) -> Any:
        """Nested arguments with nodes as Refs, collected in `reads`, and torch's own types as text."""
        if isinstance(value, Node) and isinstance(value.meta.get("val"), _NUMBERS):
            return self._number(value)
        if isinstance(value, (Node, _Named)):
            name = value.name if isinstance(value, _Named) else self.names[value]
            if name is None:
                return None
            reads.append(name)
            return Ref(len(reads) - 1)
        if isinstance(value, (tuple, list)):
            return type(value)(self._arguments(item, reads) for item in value)
        if isinstance(value, torch.dtype):
            return str(value)
        return value

    def _number(self, node: Node) -> int:
        """A number the model computed from its sizes."""
        assert self.symbols is not None
        value = node.meta["val"]
        if isinstance(value, torch.SymInt):
            return self.symbols.size(value)
        raise TraceError(
            f"the model computes a number from its sizes that is no whole size: {self.symbols.text(value)}",
            where=note_of(next(iter(node.users)).meta).get("source", ""),
            remedy="compute it from a tensor, or leave the size out of dynamic=...",
        )

    def _unique(self, prefix: str, kind: str) -> str:
        short = plain_name(kind)
        base = prefix + short
        self.used[base] += 1
        return base if self.used[base] == 1 else f"{base}_{self.used[base]}"


def plain_name(kind: str) -> str:
    """The operator's own name, without the library's and the overload's.

    >>> plain_name("aten.add.Tensor"), plain_name("aten._softmax"), plain_name("mylib.scale"), plain_name("linear")
    ('add', 'softmax', 'scale', 'linear')
    """
    parts = kind.split(".")
    return parts[1 if len(parts) > 1 else 0].strip("_")


def kind_of(target: Any) -> str:
    """The kind of an FX target: ``aten.gelu``, ``aten.add.Scalar``, ``linear``."""
    if getattr(target, "__name__", "") == "getitem":
        return "getitem"
    namespace, _, rest = str(target).partition(".")
    rest = rest.removesuffix(".default")
    return rest if namespace == "superscaler" else f"{namespace}.{rest}"


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")
