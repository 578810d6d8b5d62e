"""Float8: linear layers that multiply in float8 (`superscaler.runtime.ops.float8`), and why others do not.

A pass from graph to graph. Parameters, activations and gradients stay what they are; only products are others.
"""

from collections.abc import Sequence
from dataclasses import replace

from superscaler.errors import TraceError
from superscaler.ir.graph import Graph, Operator, drop_unread

FLOAT8 = {
    "linear": "linear_float8",
    "linear_input_gradient": "linear_float8_input_gradient",
    "linear_weight_gradient": "linear_float8_weight_gradient",
}
"""Kind -> the kind that multiplies in float8."""
WIDE = {narrow: wide for wide, narrow in FLOAT8.items()}
"""Kind that multiplies in float8 -> the kind that does not."""
LINEAR = ("linear", FLOAT8["linear"])
"""The kinds of a linear layer's forward."""
CASTS = {
    "linear_float8": ("float8_rows", "float8_rows"),
    "linear_float8_input_gradient": ("float8_rows", "float8_columns"),
    "linear_float8_weight_gradient": ("float8_columns", "float8_columns"),
}
"""Kind that multiplies in float8 -> the functions that cast its two operands; a program may call them by themselves."""
DTYPE_OF_CASTS = "float8_e4m3fn"
DTYPE = "bfloat16"
"""Of the operands: it is what the kernels of torch give back."""
ALIGNED = 16
"""Of what the kernels take multiples."""


def with_float8(graph: Graph) -> Graph:
    """The graph whose linear layers multiply in float8, forward and backward, where they can.

    Raises:
        TraceError: The graph is for inference, or no layer can.
    """
    if not graph.is_training:
        raise TraceError(
            f"float8 is for training, and {graph.name!r} was traced for inference",
            remedy="leave out float8, or trace with an optimizer",
        )
    operators = tuple(_narrowed(graph, one) for one in graph.operators)
    found = _with_shared_copies(replace(graph, float8=True, operators=operators))
    if not count_float8(found):
        said = "; ".join(f"{layer}: {why}" for layer, why in wide_layers(found)[:3])
        raise TraceError(
            f"no linear layer of {graph.name!r} can multiply in float8 ({said or 'it has none'})",
            remedy="compute in bfloat16 (--autocast bfloat16), in sizes that are multiples of 16; "
            "or leave out float8",
        )
    return found


def wide_layers(graph: Graph) -> list[tuple[str, str]]:
    """Each linear layer that does not multiply in float8, by its module, or the line of the call; and the reason."""
    wide = (one for one in graph.operators if one.kind == "linear" and not one.is_again)
    named = ((one.module or f"the call at {one.source}", _why_wide(graph, one)) for one in wide)
    return list(dict.fromkeys(named))


def count_float8(graph: Graph) -> int:
    """How many of the user's calls of linear layers multiply in float8."""
    return len({one.origin for one in graph.operators if one.kind == FLOAT8["linear"]})


def why_wide(dtypes: Sequence[str], outputs: int, inputs: int) -> str:
    """Why a layer of a weight [outputs, inputs] does not multiply in float8; empty where it can."""
    other = next((dtype for dtype in dtypes if dtype != DTYPE), "")
    if other:
        return f"it computes in {other}, not in {DTYPE}"
    sizes = ((outputs, "outputs"), (inputs, "inputs"))
    odd = [f"its {size} {what} are no multiple of {ALIGNED}" for size, what in sizes if size % ALIGNED]
    return " and ".join(odd)


def owner_of(operator: Operator) -> str:
    """The module that has an operator's own: its layers share copies and casts of what they have in common."""
    return operator.module.rpartition(".")[0]


def _narrowed(graph: Graph, operator: Operator) -> Operator:
    if operator.kind not in FLOAT8 or _why_wide(graph, operator):
        return operator
    return replace(operator, kind=FLOAT8[operator.kind])


def _with_shared_copies(graph: Graph) -> Graph:
    """The graph in which layers of one module read one copy in lower precision of what they have in common.

    Autocast makes a copy for each of q, k and v. Of one copy, one cast to float8 serves all three.
    """
    first: dict[str, str] = {}
    standing: dict[str, str] = {}
    operators: list[Operator] = []
    for one in graph.operators:
        operators.append(replace(one, reads=tuple(standing.get(name, name) for name in one.reads)))
        if one.kind == "aten._to_copy":
            key = repr((one.reads, one.arguments, one.keywords, one.phase, owner_of(one)))
            standing[one.writes[0]] = first.setdefault(key, one.writes[0])
    return drop_unread(graph.with_operators(tuple(operators)))


def _why_wide(graph: Graph, operator: Operator) -> str:
    """Of a layer's forward or gradient: all three have its weight or the gradient of it, and so tell the same."""
    is_weight_gradient = operator.kind == "linear_weight_gradient"
    weight = graph.tensors[operator.writes[0] if is_weight_gradient else operator.reads[1]]
    return why_wide([graph.tensors[name].dtype for name in operator.reads], *weight.shape)
