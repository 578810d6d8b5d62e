"""Declare the rule of an operator of one's own, where an experiment shall not have to find it."""

from collections.abc import Callable
from typing import Any, TypeVar

from torch._library.custom_ops import CustomOpDef

from superscaler.errors import TraceError
from superscaler.ir.import_fx import kind_of
from superscaler.ir.kinds import KINDS, declare_rule

T = TypeVar("T")


def rule(text: str, *, shape_argument: int | None = None) -> Callable[[T], T]:
    """Declare the rule of an operator; it is checked by experiment when a model that uses it is traced.

        @ss.rule("b s d, d -> b s d")
        @torch.library.custom_op("mylib::scale", mutates_args=())
        def scale(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor: ...

        ss.rule("b s d, d -> b s d")(torch.ops.mylib.scale)
        ss.rule("b s d, d -> b s d")("mylib::scale")

    Args:
        text: The rule in index notation (`superscaler.ir.rules`).
        shape_argument: Position of the argument that is the shape of the result, if there is one.
    """

    def declare(operator: T) -> T:
        kind = _kind(operator)
        if kind in KINDS and not KINDS[kind].declared:
            raise TraceError(
                f"{kind} has a rule already, in superscaler/ir/kinds.py",
                remedy="declare rules of other operators",
            )
        if "->" not in text:
            raise TraceError(
                f"the rule {text!r} of {kind} has no arrow", remedy='write it like "b s d, d -> b s d"'
            )
        declare_rule(kind, text, shape_argument=shape_argument)
        return operator

    return declare


def _kind(operator: Any) -> str:
    if isinstance(operator, CustomOpDef):
        return operator._qualname.replace("::", ".")
    if isinstance(operator, str):
        return operator.removeprefix("torch.ops.").replace("::", ".").removesuffix(".default")
    return kind_of(operator)
