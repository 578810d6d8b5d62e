"""Whole operators (`superscaler.ir.whole`), each with its own backward, and the optimizers' updates."""

from collections.abc import Sequence

from superscaler.ir.graph import Operator
from superscaler.ir.kind import Kind
from superscaler.ir.rules import Shape


def _attention_terms(
    operator: Operator, q: Shape, k: Shape, masks: Sequence[Shape]
) -> tuple[str, str, str, str, str]:
    """Terms of q, k, v, the mask (or nothing) and out with lse.

    Several query heads may share a head of keys and values. A piece of the queries of a causal attention is told
    where it starts.
    """
    query = "query@" if operator.keyword("causal") else "query"
    heads = "heads" if q[1] == k[1] else "(heads group)"
    mask = ""
    if masks:
        names = ("batch", heads, query, "key!")[4 - len(masks[0]) :]
        mask = " ".join("1" if size == 1 else name for size, name in zip(masks[0], names, strict=True))
    rows = f"batch {heads} {query}"
    return f"{rows} e!", "batch heads key! e!", "batch heads key! f!", mask, f"{rows} f!, {rows}"


def _attention(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    q, k, v, mask, out = _attention_terms(operator, reads[0], reads[1], reads[3:])
    return f"{', '.join(filter(None, (q, k, v, mask)))} -> {out}"


def _attention_backward(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    q, k, v, mask, out = _attention_terms(operator, reads[1], reads[2], reads[6:])
    return f"{', '.join(filter(None, (out.partition(',')[0], q, k, v, out, mask)))} -> {q}, {k}, {v}"


def _attention_mask_gradient(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    q, k, v, mask, out = _attention_terms(operator, reads[1], reads[2], reads[6:])
    return f"{out.partition(',')[0]}, {q}, {k}, {v}, {out}, {mask} -> {mask}"


def _paged_attention(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    """Heads are all that may be cut: the new tokens are those of all sequences, whose keys lie anywhere in the caches."""
    heads = "heads" if reads[0][1] == reads[1][1] else "(heads group)"
    new = f"1 {heads} token! e!, 1 heads token! e!, 1 heads token! f!"
    step = "token!, start!, sequence!, sequence! page!, token!, token! new!"
    return f"{new}, slot! heads e!, slot! heads f!, {step} -> 1 {heads} token! f!"


def _linear(operator: Operator, reads: Sequence[Shape], writes: Sequence[Shape]) -> str:
    return f"*b k, n k{', +n' if len(reads) > 2 else ''} -> *b n"


WHOLE_OPERATORS = {
    "linear": Kind(_linear, "F.linear", flops_per_point=2),
    "linear_input_gradient": Kind("*b n, n k -> *b k", "ops.linear_input_gradient", flops_per_point=2),
    "linear_weight_gradient": Kind("*b n, *b k -> n k", "ops.linear_weight_gradient", flops_per_point=2),
    "linear_bias_gradient": Kind("*b n -> n", "ops.linear_bias_gradient"),
    "linear_float8": Kind(_linear, "ops.linear_float8", flops_per_point=2),
    "linear_float8_input_gradient": Kind("*b n, n k -> *b k", "ops.linear_float8_input_gradient", flops_per_point=2),
    "linear_float8_weight_gradient": Kind("*b n, *b k -> n k", "ops.linear_float8_weight_gradient", flops_per_point=2),
    "attention": Kind(_attention, "ops.attention", ("", "lse"), flops_per_point=2, starts={"query_start": "query"}),
    "attention_backward": Kind(_attention_backward, "ops.attention_backward", ("dq", "dk", "dv"), flops_per_point=2, starts={"query_start": "query"}),
    "attention_mask_gradient": Kind(_attention_mask_gradient, "ops.attention_mask_gradient", flops_per_point=2, starts={"query_start": "query"}),
    "paged_attention": Kind(_paged_attention, "ops.paged_attention", flops_per_point=2, writes_into=(3, 4)),
    "cross_entropy": Kind("n vocab@, n -> n:logsumexp, n", "ops.cross_entropy", ("lse", "picked"), starts={"vocab_start": "vocab"}),
    "cross_entropy_backward": Kind("n, n, n vocab@, n, n -> n vocab", "ops.cross_entropy_backward", starts={"vocab_start": "vocab"}),
    "embedding": Kind("vocab@ d, *b -> *b d", "ops.embedding", starts={"vocab_start": "vocab"}),
    "embedding_backward": Kind("*b d, *b -> vocab@ d", "ops.embedding_backward", starts={"vocab_start": "vocab"}, lengths={"num_rows": "vocab"}, linear_in=(0,)),
    "dropout": Kind("*b, . -> *b", "ops.dropout", boxed=True),
    "dropout_backward": Kind("*b, . -> *b", "ops.dropout_backward", boxed=True),
}  # fmt: skip
