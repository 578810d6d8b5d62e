"""The operator table: per kind its rule in index notation, its function by name, and what a cut changes in its call.

To add an operator, add a row. A rule is text where one line can say it, else a function from the operator's call
and shapes to such text (`superscaler.ir.shape_rules`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from superscaler.errors import TraceError
from superscaler.ir.graph import Graph, Operator, Ref
from superscaler.ir.rules import Rule, RuleMismatch, Shape, bind
from superscaler.ir.shape_rules import (
    across_dim,
    any_piece,
    contract_dims,
    join_dim,
    keep_dim_whole,
    layer_norm,
    layer_norm_backward,
    move_dims,
    pointwise,
    regroup,
    stretch,
    whole_result,
)

RuleSource = str | Callable[[Operator, Sequence[Shape], Sequence[Shape]], str]


@dataclass(frozen=True, slots=True)
class Kind:
    """What the compiler knows of one kind of operator."""

    rule: RuleSource
    call: str = ""
    """The function to call, as generated source names it; empty: ``torch.ops.<kind>``."""
    outputs: tuple[str, ...] = ("",)
    """A label per written tensor; empty: the tensor is named like the operator."""
    shape_argument: int | None = None
    """Position of the argument that is the shape of the (local) result."""
    starts: Mapping[str, str] | None = None
    """Keyword -> the letter whose piece's first index it is told."""
    lengths: Mapping[str, str] | None = None
    """Keyword -> the letter whose piece's length it is told."""
    boxed: bool = False
    """Whether the call is told where its first argument's piece lies: keywords ``starts`` and ``whole``."""
    linear: bool = False
    """Whether the call is jointly linear in all it reads: summands in, summands out."""
    flops_per_point: float = 1.0
    """Arithmetic per point of the letters' product (2 for a matrix product)."""


_ROW = "*b d!"
_ATTENTION_Q = "batch heads query e!"
_ATTENTION_K, _ATTENTION_V = "batch heads key! e!", "batch heads key! f!"
_ATTENTION_OUT = "batch heads query f!, batch heads query"


def _attention(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    mask = _mask_term(reads[3:], writes[0])
    return f"{_ATTENTION_Q}, {_ATTENTION_K}, {_ATTENTION_V}{mask} -> {_ATTENTION_OUT}".replace(
        "query", "query!"
    )


def _attention_backward(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    mask = _mask_term(reads[6:], reads[4])
    return (
        f"batch heads query f!, {_ATTENTION_Q}, {_ATTENTION_K}, {_ATTENTION_V}, {_ATTENTION_OUT}{mask}"
        f" -> {_ATTENTION_Q}, {_ATTENTION_K}, {_ATTENTION_V}"
    ).replace("query", "query!")


def _mask_term(masks: Sequence[Shape], out: Shape) -> str:
    if not masks:
        return ""
    names = ("batch", "heads", "query", "key!")[4 - len(masks[0]) :]
    return ", " + " ".join("1" if size == 1 else name for size, name in zip(masks[0], names, strict=True))


KINDS: dict[str, Kind] = {
    # whole operators (superscaler.ir.whole); with a causal or masked attention a piece of the queries
    # would need to know where it starts, so queries stay whole
    "linear": Kind(lambda o, reads, _: f"*b k, n k{', +n' if len(reads) > 2 else ''} -> *b n", "F.linear", flops_per_point=2),
    "linear_input_gradient": Kind("*b n, n k -> *b k", "ops.linear_input_gradient", flops_per_point=2),
    "linear_weight_gradient": Kind("*b n, *b k -> n k", "ops.linear_weight_gradient", flops_per_point=2),
    "linear_bias_gradient": Kind("*b n -> n", "ops.linear_bias_gradient"),
    "attention": Kind(_attention, "ops.attention", ("", "lse"), flops_per_point=2),
    "attention_backward": Kind(_attention_backward, "ops.attention_backward", ("dq", "dk", "dv"), flops_per_point=2),
    "cross_entropy": Kind("n vocab@, n -> n:logsumexp, n", "ops.cross_entropy", ("lse", "picked"), starts={"vocab_start": "vocab"}),
    "cross_entropy_backward": Kind("n, n, n vocab@, n, n -> n vocab", "ops.cross_entropy_backward", starts={"vocab_start": "vocab"}),
    "embedding": Kind("vocab@ d, *b -> *b d", "ops.embedding", starts={"vocab_start": "vocab"}),
    "embedding_backward": Kind("*b d, *b -> vocab@ d", "ops.embedding_backward", starts={"vocab_start": "vocab"}, lengths={"num_rows": "vocab"}),
    "aten.embedding_dense_backward": Kind("*b d, *b -> vocab! d"),
    "dropout": Kind("*b, . -> *b", "ops.dropout", boxed=True),
    "dropout_backward": Kind("*b, . -> *b", "ops.dropout_backward", boxed=True),
    "adamw": Kind("*p, *p, *p, *p, . -> *p, *p, *p", "ops.adamw", ("", "exp_avg", "exp_avg_sq")),
    "sgd": Kind(lambda o, reads, writes: ", ".join(["*p"] * (len(reads) - 1) + ["."]) + " -> " + ", ".join(["*p"] * len(writes)),
                "ops.sgd", ("", "momentum_buffer")),
    # matrix products
    "aten.mm": Kind("m k, k n -> m n", "torch.mm", flops_per_point=2),
    "aten.bmm": Kind("b m k, b k n -> b m n", "torch.bmm", flops_per_point=2),
    "aten.addmm": Kind("+n, m k, k n -> m n", "torch.addmm", flops_per_point=2),
    # normalisation and rows
    "aten.native_layer_norm": Kind(layer_norm, "torch.native_layer_norm", ("", "mean", "rstd"), flops_per_point=8),
    "aten.native_layer_norm_backward": Kind(layer_norm_backward, "ops.layer_norm_backward", ("dx", "dweight", "dbias"), flops_per_point=12),
    "aten._softmax": Kind(keep_dim_whole, "torch.ops.aten._softmax", flops_per_point=5),
    "aten._softmax_backward_data": Kind(keep_dim_whole, "torch.ops.aten._softmax_backward_data", flops_per_point=5),
    "aten._log_softmax": Kind(keep_dim_whole, "torch.ops.aten._log_softmax", flops_per_point=5),
    "aten._log_softmax_backward_data": Kind(keep_dim_whole, "torch.ops.aten._log_softmax_backward_data", flops_per_point=5),
    # batch normalisation (superscaler.ir.batch_norm)
    "channel_sums": Kind("n c *s -> c", "ops.channel_sums", linear=True),
    "channel_squares": Kind("n c *s, c -> c", "ops.channel_squares", flops_per_point=3),
    "batch_norm": Kind(lambda o, reads, _: f"n c *s{', c' * (len(reads) - 1)} -> n c *s", "ops.batch_norm", flops_per_point=4),
    "batch_norm_sums": Kind("n c *s, n c *s, c, c -> c, c", "ops.batch_norm_sums", ("dy", "dy_xhat"), flops_per_point=5),
    "batch_norm_input_gradient": Kind(lambda o, reads, _: f"n c *s, n c *s{', c' * (len(reads) - 2)} -> n c *s", "ops.batch_norm_input_gradient", flops_per_point=6),
    # reductions (a mean is a sum and a division: superscaler.ir.import_fx)
    "aten.sum": Kind(contract_dims, "torch.sum", linear=True),
    "aten.sum.dim_IntList": Kind(contract_dims, "torch.sum", linear=True),
    # shapes
    "reshape": Kind(regroup, "torch.reshape", shape_argument=1, linear=True),
    "aten.t": Kind("a b -> b a", "torch.t", linear=True),
    "aten.transpose.int": Kind(move_dims, "torch.transpose", linear=True),
    "aten.permute": Kind(move_dims, "torch.permute", linear=True),
    "aten.expand": Kind(stretch, "torch.Tensor.expand", shape_argument=1),
    "aten.slice.Tensor": Kind(keep_dim_whole, "torch.ops.aten.slice.Tensor"),
    "aten.select.int": Kind(keep_dim_whole, "torch.select"),
    "aten.slice_backward": Kind(across_dim(2), "torch.ops.aten.slice_backward", shape_argument=1),
    "aten.select_backward": Kind(across_dim(2), "torch.ops.aten.select_backward", shape_argument=1),
    "aten.slice_scatter": Kind(across_dim(2), "torch.slice_scatter"),
    "aten.select_scatter": Kind(across_dim(2), "torch.select_scatter"),
    "aten.split.Tensor": Kind(across_dim(2), "torch.split"),
    "aten.split_with_sizes": Kind(across_dim(2), "torch.split"),
    "aten.unbind.int": Kind(across_dim(1), "torch.unbind"),
    "aten.stack": Kind(across_dim(1), "torch.stack"),
    "aten.cat": Kind(join_dim, "torch.cat"),
    # made from nothing
    "aten.arange": Kind(whole_result, "torch.arange"),
    "aten.arange.start": Kind(whole_result, "torch.arange"),
    "aten.arange.start_step": Kind(whole_result, "torch.arange"),
    "full": Kind(any_piece, "torch.full", shape_argument=0),
    "aten.tril": Kind("*b i! j! -> *b i j", "torch.tril"),
    "aten.triu": Kind("*b i! j! -> *b i j", "torch.triu"),
}  # fmt: skip

_POINTWISE = {
    "aten.add.Tensor": "torch.add", "aten.add.Scalar": "torch.add",
    "aten.sub.Tensor": "torch.sub", "aten.sub.Scalar": "torch.sub", "aten.rsub.Scalar": "torch.rsub",
    "aten.mul.Tensor": "torch.mul", "aten.mul.Scalar": "torch.mul",
    "aten.div.Tensor": "torch.div", "aten.div.Scalar": "torch.div",
    "aten.pow.Tensor_Scalar": "torch.pow", "aten.pow.Tensor_Tensor": "torch.pow",
    "aten.neg": "torch.neg", "aten.abs": "torch.abs", "aten.exp": "torch.exp", "aten.log": "torch.log",
    "aten.sqrt": "torch.sqrt", "aten.rsqrt": "torch.rsqrt", "aten.reciprocal": "torch.reciprocal",
    "aten.sin": "torch.sin", "aten.cos": "torch.cos", "aten.tanh": "torch.tanh", "aten.sigmoid": "torch.sigmoid",
    "aten.relu": "torch.relu", "aten.gelu": "F.gelu", "aten.silu": "F.silu", "aten.erf": "torch.erf",
    "aten.clamp": "torch.clamp", "aten.maximum": "torch.maximum", "aten.minimum": "torch.minimum",
    "aten.gelu_backward": "torch.ops.aten.gelu_backward", "aten.silu_backward": "torch.ops.aten.silu_backward",
    "aten.tanh_backward": "torch.ops.aten.tanh_backward", "aten.sigmoid_backward": "torch.ops.aten.sigmoid_backward",
    "aten.threshold_backward": "torch.ops.aten.threshold_backward",
    "aten.where.self": "torch.where", "aten.masked_fill.Scalar": "torch.masked_fill",
    "aten.masked_fill.Tensor": "torch.masked_fill", "aten.logical_not": "torch.logical_not",
    "aten.bitwise_not": "torch.bitwise_not", "aten.logical_and": "torch.logical_and",
    "aten.bitwise_and.Tensor": "torch.bitwise_and", "aten.bitwise_or.Tensor": "torch.bitwise_or",
    "aten.eq.Scalar": "torch.eq", "aten.eq.Tensor": "torch.eq", "aten.ne.Scalar": "torch.ne",
    "aten.ne.Tensor": "torch.ne", "aten.lt.Scalar": "torch.lt", "aten.lt.Tensor": "torch.lt",
    "aten.le.Scalar": "torch.le", "aten.le.Tensor": "torch.le", "aten.gt.Scalar": "torch.gt",
    "aten.gt.Tensor": "torch.gt", "aten.ge.Scalar": "torch.ge", "aten.ge.Tensor": "torch.ge",
    "aten.fill.Tensor": "torch.ops.aten.fill.Tensor", "aten.fill.Scalar": "torch.ops.aten.fill.Scalar",
    "aten._to_copy": "torch.ops.aten._to_copy",
}  # fmt: skip
_LINEAR_POINTWISE = {"aten.add.Tensor", "aten.sub.Tensor", "aten.neg"}
KINDS.update(
    {kind: Kind(pointwise, call, linear=kind in _LINEAR_POINTWISE) for kind, call in _POINTWISE.items()}
)


def rule_of(operator: Operator, graph: Graph) -> tuple[Rule, dict[str, int]]:
    """The operator's rule, bound to its shapes, and the size of each letter.

    Raises:
        TraceError: The kind has no row, or its rule does not fit the call.
    """
    if operator.kind not in KINDS:
        raise TraceError(
            f"the operator {operator.name!r} is of a kind without a rule: {operator.kind}",
            where=operator.source,
            remedy="add a row for it to KINDS in superscaler/ir/kinds.py, or declare one: "
            f'declare_rule("{operator.kind}", "b s d -> b s d")',
        )
    reads = [graph.tensors[name].shape for name in operator.reads]
    writes = [graph.tensors[name].shape for name in operator.writes]
    try:
        return bind_row(KINDS[operator.kind], operator, reads, writes)
    except RuleMismatch as mismatch:
        raise TraceError(
            f"the rule of {operator.kind} does not fit the operator {operator.name!r}: {mismatch}",
            where=operator.source,
            remedy="the rule in superscaler/ir/kinds.py must name each dim of each tensor",
        ) from None


def bind_row(
    row: Kind, operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]
) -> tuple[Rule, dict[str, int]]:
    """The rule of a row, bound to the shapes of a call, and the size of each letter.

    Raises:
        RuleMismatch: The rule does not fit the shapes.
    """
    text = row.rule if isinstance(row.rule, str) else row.rule(operator, reads, writes)
    return bind(text, reads, writes)


def is_linear(operator: Operator) -> bool:
    """Whether the call maps summands of all it reads to summands of what it writes.

    ``x + 1`` is of a linear kind and is not linear: every summand would get its own 1.
    """
    if operator.kind not in KINDS or not KINDS[operator.kind].linear:
        return False
    if operator.kind in ("aten.add.Tensor", "aten.sub.Tensor"):
        return all(isinstance(argument, Ref) for argument in operator.arguments[:2])
    return True


def declare_rule(kind: str, rule: str, call: str = "") -> None:
    """Add a row for an operator of one's own: ``declare_rule("mylib.scale", "b s d, d -> b s d")``."""
    KINDS[kind] = Kind(rule, call)


def output_labels(kind: str, count: int) -> tuple[str, ...]:
    """A label for each of `count` results."""
    known = KINDS[kind].outputs if kind in KINDS else ()
    if len(known) >= count:
        return known[:count]
    return ("",) if count == 1 else tuple(str(i) for i in range(count))


def call_name(kind: str) -> str:
    """The function of a kind, as generated source names it."""
    return (KINDS[kind].call if kind in KINDS else "") or f"torch.ops.{kind}"


def resolve(call: str) -> Any:
    """The function behind the name generated source uses: ``F.gelu``, ``ops.attention``, ``torch.add``."""
    from importlib import import_module

    root, _, path = call.partition(".")
    modules = {"F": "torch.nn.functional", "ops": "superscaler.runtime.ops", "torch": "torch"}
    value = import_module(modules[root])
    for name in path.split("."):
        value = getattr(value, name)
    return value
