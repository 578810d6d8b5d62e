"""Names: short names for tensors from their modules and operators, and identifiers that are free within a function."""

import keyword
import re
from collections.abc import Mapping

from superscaler.ir.axes import Axes
from superscaler.ir.float8 import LINEAR, WIDE
from superscaler.ir.graph import AGAIN, Graph, Operator, Phase
from superscaler.ir.import_fx import plain_name
from superscaler.ir.kinds import output_labels
from superscaler.ir.tensor import Role

VIEWS = {
    "reshape", "aten.t", "aten.transpose.int", "aten.permute", "aten.unsqueeze", "aten.squeeze", "aten.squeeze.dim",
    "aten.expand",
}  # fmt: skip
"""Kinds whose result is another view of what they read, and keeps its name."""
_WHOLE_MODULE = {*LINEAR, "embedding", "aten.native_layer_norm"}
"""Kinds that are all their module does, so that the module's name says enough."""
_PLAIN = {
    "sum": "total", "sub": "difference", "mul": "product", "div": "quotient", "ne": "mask", "eq": "mask", "lt": "mask",
    "le": "mask", "gt": "mask", "ge": "mask", "where": "chosen", "full": "constant", "pow": "power", "abs": "magnitude",
    "arange": "positions", "max": "largest", "min": "smallest", "slice": "part", "select": "part", "to_copy": "cast",
}  # fmt: skip
"""Kinds whose own name would hide a built-in function or say too little."""
_OPERAND_OF = {
    "linear_input_gradient": ("linear", 0), "linear_weight_gradient": ("linear", 1),
    "linear_bias_gradient": ("linear", 2), "embedding_backward": ("embedding", 0), "aten.neg": ("aten.sub.Tensor", 1),
}  # fmt: skip
"""Backward kind -> the forward kind and the operand its result is the gradient of."""


def identifier(text: str) -> str:
    """The nearest Python identifier."""
    name = re.sub(r"\W+", "_", text).strip("_").lower() or "value"
    return f"{name}_" if keyword.iskeyword(name) else f"n{name}" if name[0].isdigit() else name


def leaf(module: str) -> str:
    """The last part of a module's path, with the part before it where it is a number.

    >>> leaf("h.0.attn.q"), leaf("layers.3"), leaf("")
    ('q', '', '')
    """
    last = module.rpartition(".")[2]
    return "" if last.isdecimal() else last


def name_tensors(graph: Graph, axes: Axes) -> dict[str, str]:
    """A short name per tensor, not unique: ``q``, ``mlp_gelu``, ``d_up``."""
    names = {name: identifier(name.rpartition("/")[2]) for name in graph.tensors}
    for tensor in graph.stored():
        names[tensor.name] = identifier("_".join(tensor.name.split(".")[-2:]))
    forward: dict[int, list[Operator]] = {}
    for operator in graph.operators:
        if operator.is_again:
            originals = {name: name.removesuffix(AGAIN) for name in operator.writes}
            names.update({name: names[first] for name, first in originals.items() if first in names})
        elif operator.phase is not Phase.BACKWARD:
            forward.setdefault(operator.origin, []).append(operator)
            names.update(_forward_names(graph, axes, operator, names))
        else:
            names.update(_gradient_names(graph, operator, forward.get(operator.origin, []), names))
    if graph.is_training:
        names.update(dict.fromkeys(graph.outputs[:1], "loss"))
    for parameter, gradient in graph.gradients.items():
        names[gradient] = f"d_{names[parameter]}"
    return names


def _forward_names(graph: Graph, axes: Axes, operator: Operator, names: Mapping[str, str]) -> dict[str, str]:
    first = operator.reads[0] if operator.reads else ""
    if operator.kind in VIEWS or operator.kind == "dropout":
        return {operator.writes[0]: names[first]}
    module, kind = leaf(operator.module), plain_name(operator.kind)
    kind = _PLAIN.get(kind, kind)
    if operator.kind == "aten.add.Tensor" and not module:
        base = "x"
    elif operator.kind in _WHOLE_MODULE and module:
        base = module
    elif operator.kind in LINEAR and axes.fine(operator.writes[0])[-1:] and _ends_in_vocab(axes, operator):
        base = "logits"
    else:
        is_core = kind in ("attention", "paged_attention")
        base = kind if module in ("", kind) else module if is_core else f"{module}_{kind}"
    labels = output_labels(operator.kind, len(operator.writes))
    return {
        name: identifier(base if not label else f"{base}_{label}" if module else label)
        for name, label in zip(operator.writes, labels, strict=True)
    }


def _ends_in_vocab(axes: Axes, operator: Operator) -> bool:
    return axes.fine(operator.writes[0])[-1].name == "vocab"


def _gradient_names(
    graph: Graph, operator: Operator, origins: list[Operator], names: Mapping[str, str]
) -> dict[str, str]:
    """What an operator of the backward pass writes is the gradient of something its forward operator read."""
    labels = output_labels(operator.kind, len(operator.writes))
    kind = WIDE.get(operator.kind, operator.kind)
    wanted, position = _OPERAND_OF.get(kind, (kind.removesuffix("_backward"), 0))
    alike = [origin for origin in origins if WIDE.get(origin.kind, origin.kind) == wanted]
    if not alike and len({origin.name for origin in origins}) == 1:
        alike = origins
    if operator.origin < 0 and operator.kind == "full":
        return {operator.writes[0]: "d_loss"}
    result = {}
    for index, (name, label) in enumerate(zip(operator.writes, labels, strict=True)):
        operand = ""
        if alike:
            operand = _operand(
                graph, alike[0], graph.tensors[name].shape, index if label else position, bool(label)
            )
        result[name] = (
            f"d_{names[operand]}" if operand else identifier(f"d_{plain_name(operator.kind)}_{label}")
        )
    return result


def _operand(graph: Graph, origin: Operator, shape: tuple[int, ...], position: int, exact: bool) -> str:
    """The tensor among those `origin` reads that has this shape: the one at `position` first."""
    reads = [*origin.reads[position : position + 1], *(() if exact else origin.reads)]
    for name in reads:
        tensor = graph.tensors[name]
        if tensor.shape == shape and tensor.role is not Role.BUFFER and "float" in tensor.dtype:
            return name
    return ""


class Scope:
    """Identifiers of one function."""

    def __init__(self, reserved: tuple[str, ...] = ()) -> None:
        self.owner: dict[str, str] = dict.fromkeys(reserved, "")
        self.names: dict[str, str] = {}

    def bind(self, value: str, hint: str, dead: frozenset[str] = frozenset()) -> str:
        """Name a value; the name of a `dead` value may be taken over."""
        name, number = hint, 1
        while name in self.owner and self.owner[name] not in dead:
            number += 1
            name = f"{hint}_{number}"
        self.names.pop(self.owner.get(name, ""), None)
        self.owner[name], self.names[value] = value, name
        return name

    def release(self, value: str) -> None:
        """Forget a value; its name becomes free."""
        name = self.names.pop(value, None)
        if name is not None:
            del self.owner[name]
