"""Expressions: one call of a torch function as a person would write it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from superscaler.codegen.program import Compute, Offset
from superscaler.codegen.sizes import Sizes
from superscaler.ir.float8 import LINEAR
from superscaler.ir.graph import Ref
from superscaler.ir.kinds import call_name
from superscaler.ir.layout import Extent
from superscaler.ir.size import Size


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of source."""

    text: str
    is_atom: bool = True
    """Whether a method can be called on it, or an operator put beside it, without parentheses."""

    @property
    def atom(self) -> str:
        """The text, in parentheses where it needs them."""
        return self.text if self.is_atom else f"({self.text})"

    def __str__(self) -> str:
        return self.text


_INFIX = {
    "aten.add.Tensor": "+", "aten.sub.Tensor": "-", "aten.mul.Tensor": "*", "aten.div.Tensor": "/",
    "aten.add.Scalar": "+", "aten.sub.Scalar": "-", "aten.mul.Scalar": "*", "aten.div.Scalar": "/",
    "aten.pow.Tensor_Scalar": "**", "aten.ne.Scalar": "!=", "aten.eq.Scalar": "==", "aten.lt.Scalar": "<",
    "aten.le.Scalar": "<=", "aten.gt.Scalar": ">", "aten.ge.Scalar": ">=", "aten.ne.Tensor": "!=",
    "aten.eq.Tensor": "==", "aten.lt.Tensor": "<", "aten.le.Tensor": "<=", "aten.gt.Tensor": ">",
    "aten.ge.Tensor": ">=", "aten.bitwise_and.Tensor": "&", "aten.bitwise_or.Tensor": "|",
}  # fmt: skip
METHODS = {
    "reshape": "reshape", "aten.transpose.int": "transpose", "aten.t": "t", "aten.permute": "permute",
    "aten.unsqueeze": "unsqueeze", "aten.squeeze": "squeeze", "aten.squeeze.dim": "squeeze", "aten.expand": "expand",
    "widen": "to", "aten.sum": "sum", "aten.sum.dim_IntList": "sum",
}  # fmt: skip
"""Kinds written as a method of what they read first."""
_SPREAD = {"reshape", "aten.permute", "aten.expand"}
"""Methods whose list argument is written as separate arguments."""
_NO_STOP = 2**63 - 1
"""What torch calls the end of a slice that has none."""
_FACTORIES = {
    "full", "aten.arange", "aten.arange.start", "aten.arange.start_step", "aten.eye", "aten.eye.m", "aten.linspace",
    "aten.tril_indices", "aten.triu_indices",
}  # fmt: skip


def call(
    instruction: Compute, reads: Sequence[Text], sizes: Sizes, own: Callable[[Any], str] | None = None
) -> Text:
    """The call of a Compute instruction.

    Args:
        instruction: The call.
        reads: The text of each value it reads.
        sizes: Writes what depends on the device.
        own: Writes a keyword's value differently in a repeated block; None for the usual text.
    """
    kind, arguments, keywords = instruction.kind, instruction.arguments, list(instruction.keywords)

    def text(value: Any) -> str:
        if isinstance(value, Ref):
            return str(reads[value.index])
        return literal(value, sizes, text)

    if kind in _INFIX and not keywords and len(arguments) == 2:
        sides = [
            reads[a.index].atom if isinstance(a, Ref) else sizes.factor(a) if isinstance(a, Size) else text(a)
            for a in arguments
        ]
        return Text(f"{sides[0]} {_INFIX[kind]} {sides[1]}", is_atom=False)
    if kind == "aten.neg":
        return Text(f"-{reads[0].atom}", is_atom=False)
    if kind in ("aten.slice.Tensor", "aten.select.int") and not keywords:
        return Text(f"{reads[0].atom}[{_subscript(kind, arguments[1:], text)}]")
    if kind == "aten._to_copy" and [key for key, _ in keywords] == ["dtype"]:
        return Text(f"{reads[0].atom}.to({text(keywords[0][1])})")
    if kind in METHODS and isinstance(arguments[0], Ref):
        rest = list(arguments[1:])
        if kind in _SPREAD and rest and isinstance(rest[0], (list, tuple)) and rest[0]:
            rest[:1] = rest[0]
        inside = ", ".join([*map(text, rest), *(f"{key}={text(value)}" for key, value in keywords)])
        return Text(f"{reads[0].atom}.{METHODS[kind]}({inside})")
    if kind in LINEAR and arguments[-1] is None:
        arguments = arguments[:2]
    while kind == "attention" and arguments and arguments[-1] is None:
        arguments = arguments[:-1]
    inside = [text(argument) for argument in arguments]
    inside += [f"{key}={(own and own((key, value))) or text(value)}" for key, value in keywords]
    if kind in _FACTORIES:
        inside.append("device=rt.device")
    return Text(f"{call_name(kind)}({', '.join(inside)})")


def _subscript(kind: str, arguments: Sequence[Any], text: Callable[[Any], str]) -> str:
    """What stands in the brackets of ``x[:, 0]`` or ``x[..., 4:]``."""
    dim, *rest = arguments
    if kind == "aten.select.int":
        index = text(rest[0])
    else:
        start, stop, step = (*rest, None, None, None)[:3]
        index = ("" if start in (None, 0) else text(start)) + ":"
        index += "" if stop is None or stop >= _NO_STOP else text(stop)
        index += "" if step in (None, 1) else f":{text(step)}"
    if dim < 0:
        return ", ".join(["...", index, *[":"] * (-dim - 1)])
    return ", ".join([*[":"] * dim, index])


def literal(value: Any, sizes: Sizes, text: Callable[[Any], str] | None = None) -> str:
    """A constant argument."""
    text = text or (lambda item: literal(item, sizes))
    if isinstance(value, Extent):
        return sizes.extent(value)
    if isinstance(value, Offset):
        return sizes.offset(value)
    if isinstance(value, Size):
        return sizes.number(value)
    if isinstance(value, (list, tuple)):
        inside = ", ".join(map(text, value))
        return f"[{inside}]" if isinstance(value, list) or len(value) != 1 else f"({inside},)"
    if isinstance(value, str):
        return value if value.startswith("torch.") else f'"{value}"'
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return f'float("{value}")'
    return repr(value)


def without_unread(targets: list[str], text: str) -> tuple[list[str], str]:
    """Leave out unread results at either end of a call's, for a name, be it ``_``, keeps their memory."""
    read = [place for place, target in enumerate(targets) if target != "_"]
    if not read:
        return targets, text
    first, end = read[0], read[-1] + 1
    if end - first == 1:
        return targets[first:end], f"{text}[{first}]"
    start, stop = str(first) if first else "", str(end) if end < len(targets) else ""
    return targets[first:end], f"{text}[{start}:{stop}]" if start or stop else text


def results_wanted(instruction: Compute) -> Sequence[bool]:
    """Which results an operator of ATen is asked for, by its last argument; empty: all."""
    last = instruction.arguments[-1] if instruction.arguments else None
    if not isinstance(last, list | tuple) or not all(isinstance(item, bool) for item in last):
        return ()
    return last if sum(last) == len(instruction.writes) < len(last) else ()
