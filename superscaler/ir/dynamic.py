"""Sizes that vary, while a model is traced: symbols for dims of inputs, and what the model turned out to require.

The trace runs on fake tensors whose sizes are torch's SymInts. torch notes a guard wherever the outcome of a
comparison decided what was traced; here each becomes a `Requirement`. A guard that fixes a symbol is refused.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any

import sympy
import torch
import torch.fx.experimental._config as symbolic_config
from torch._dynamo.source import ConstantSource
from torch._guards import SLoc
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, uninteresting_files

from superscaler.errors import TraceError
from superscaler.ir.size import Requirement, Size, exact_quotient, in_brackets, largest, smallest, symbol
from superscaler.ir.source_line import user_line

Dynamic = Mapping[str, Mapping[int, str] | Sequence[str | None]]
"""Input -> the symbol of each dim that varies: ``{"tokens": {0: "batch", 1: "seq"}}`` or ``("batch", "seq")``."""
_RELATIONS = {
    sympy.Eq: "==", sympy.Ne: "!=", sympy.StrictLessThan: "<", sympy.LessThan: "<=",
    sympy.StrictGreaterThan: ">", sympy.GreaterThan: ">=",
}  # fmt: skip
_RESERVED = ("min", "max", "and", "or", "not", "step")


class Symbols:
    """The sizes that vary in one trace.

    Args:
        dynamic: Which dims of which inputs.
        inputs: Input -> its example.

    Raises:
        TraceError: `dynamic` names what is not there, or one symbol would stand for two numbers, or for less than 2.
    """

    def __init__(self, dynamic: Dynamic, inputs: Mapping[str, torch.Tensor]) -> None:
        self.by_input = {name: _by_dim(name, dims, inputs) for name, dims in dynamic.items()}
        self.hints = _hints(self.by_input, inputs)
        self.environment = _Environment(specialize_zero_one=False, duck_shape=False)
        self._ints = {name: self._symint(name, hint) for name, hint in self.hints.items()}
        self._names = {value.node.expr: name for name, value in self._ints.items()}
        self._known: dict[sympy.Expr, sympy.Expr] = {}

    def _symint(self, name: str, hint: int) -> Any:
        source = ConstantSource(name)
        expr = self.environment.create_symbol(hint, source, DimDynamic.DYNAMIC, constraint_dim=None)
        return self.environment.create_symintnode(expr, hint=hint, source=source)

    def shape(self, name: str, value: torch.Tensor) -> list[Any]:
        """The shape of an input, with a symbol for each dim that varies."""
        dims = self.by_input.get(name, {})
        return [self._ints[dims[dim]] if dim in dims else size for dim, size in enumerate(value.shape)]

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """While tracing: whether a dim broadcasts is answered as for two elements or more, without a guard.

        What is then traced is right for one element too: an operator that could have broadcast still may.
        """
        with symbolic_config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
            yield

    # after the trace

    def requirements(self) -> tuple[Requirement, ...]:
        """What the model asks of the symbols.

        Raises:
            TraceError: It fixes a symbol, or ties two.
        """
        self._refuse_fixed()
        guards = [
            g for g in self.environment.guards if not _asks_about_one(g.expr) or _is_asked_by_user(g.sloc)
        ]
        for atom in filter(None, (_decided(guard.expr) for guard in guards)):
            self._known[atom[0]] = atom[1]
        found: dict[str, Requirement] = {}
        for guard in guards:
            for condition in self._conditions(guard.expr):
                found.setdefault(condition, Requirement(condition, guard.sloc.maybe_user_loc or "the model"))
        return tuple(found.values())

    def _refuse_fixed(self) -> None:
        for expr, name in self._names.items():
            value = self.environment.replacements.get(expr)
            if value is None:
                continue
            guards = [guard for guard in self.environment.guards if expr in guard.expr.free_symbols]
            where = next((g.sloc.maybe_user_loc for g in guards if isinstance(g.expr, sympy.Eq)), "") or ""
            if value.is_number:
                raise TraceError(
                    f"the size {name!r} cannot vary: the model fixes it to {value}",
                    where=where,
                    remedy="let the model compute with the size instead of comparing or converting it, "
                    f"or leave {name!r} out of dynamic=...",
                )
            raise TraceError(
                f"the size {name!r} cannot vary on its own: the model needs {name} == {self.size(value)}",
                where=where,
                remedy="give dims that always agree one name in dynamic=...",
            )

    def _conditions(self, expr: Any) -> Iterator[str]:
        """A guard as text; an equality that tells what a rounded or limited size really is, as what makes it so."""
        decided = _decided(expr)
        if decided is None:
            expr = self._in_known_terms(expr)
            if expr != sympy.true:
                yield self._condition(expr)
            return
        atom, value = decided
        if type(atom).__name__ == "FloorDiv" and sympy.expand(value * atom.args[1] - atom.args[0]) == 0:
            over, count = map(self._convert, atom.args)
            yield f"{in_brackets(over)} % {in_brackets(count)} == 0"
        elif type(atom).__name__ in ("Min", "Max") and value in atom.args:
            sign = "<=" if type(atom).__name__ == "Min" else ">="
            others = (other for other in atom.args if other != value)
            yield from (f"{self._convert(value)} {sign} {self._convert(other)}" for other in others)
        else:
            yield self._condition(expr)

    def _condition(self, expr: Any) -> str:
        if isinstance(expr, (sympy.And, sympy.Or)):
            word = " and " if isinstance(expr, sympy.And) else " or "
            return "(" + word.join(self._condition(part) for part in expr.args) + ")"
        if isinstance(expr, sympy.Not):
            return f"not ({self._condition(expr.args[0])})"
        left, right = (self._convert(side) for side in expr.args)
        return f"{left} {_RELATIONS[type(expr)]} {right}"

    def size(self, value: Any) -> int:
        """A size of the trace, or a formula of torch's symbols, as a Size.

        Raises:
            TraceError: It is no whole number.
        """
        if not isinstance(value, torch.SymInt | sympy.Expr):
            return int(value)
        expr = value.node.expr if isinstance(value, torch.SymInt) else value
        return self._convert(self._in_known_terms(expr))

    def _in_known_terms(self, expr: Any) -> Any:
        """A formula with what rounded and limited sizes really are."""
        for atom, known in self._known.items():
            expr = expr.xreplace({atom: known})
        return expr

    def text(self, value: Any) -> str:
        """A formula of torch's symbols as text, with their own names."""
        expr = value.node.expr if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool) else value
        return str(expr.xreplace({old: sympy.Symbol(name) for old, name in self._names.items()}))

    def shape_of(self, value: torch.Tensor) -> tuple[int, ...]:
        """The shape of a traced tensor.

        Raises:
            TraceError: A size that varies is 1 or 0 in the example, like a dim that broadcasts.
        """
        shape = tuple(map(self.size, value.shape))
        for size in shape:
            if isinstance(size, Size) and size < 2:
                example = ", ".join(f"{name} {hint}" for name, hint in self.hints.items())
                raise TraceError(
                    f"a tensor of the model has a dim of {size} elements, which are {int(size)} in the example "
                    f"({example})",
                    remedy="give a larger example; the program will take smaller ones as well",
                )
        return shape

    def _convert(self, expr: Any) -> int:
        if expr.is_Integer:
            return int(expr)
        if expr in self._names:
            name = self._names[expr]
            return symbol(name, self.hints[name])
        kind = type(expr).__name__
        if kind == "Mul" and expr.args[0].is_Rational:
            ratio, rest = expr.args[0], expr.func(*expr.args[1:])
            return exact_quotient(self._convert(rest) * int(ratio.p), int(ratio.q))
        parts = [self._convert(arg) for arg in expr.args] if expr.args and not expr.is_Rational else []
        match kind:
            case "Add":
                return reduce(lambda a, b: a + b, parts)
            case "Mul":
                return reduce(lambda a, b: a * b, parts)
            case "Pow" if not isinstance(parts[1], Size) and parts[1] > 0:
                return parts[0] ** parts[1]
            case "FloorDiv":
                return parts[0] // parts[1]
            case "CleanDiv" if not isinstance(parts[1], Size):
                return exact_quotient(parts[0], parts[1])
            case "Mod" | "PythonMod":
                return parts[0] % parts[1]
            case "Min":
                return smallest(*parts)
            case "Max":
                return largest(*parts)
        raise TraceError(
            f"the model computes a number from its sizes that is no whole size: {self.text(expr)}",
            remedy="compute it from a tensor, or leave the size out of dynamic=...",
        )


class _Environment(ShapeEnv):
    """torch's symbols; notes the user's line where a guard is made."""

    def _get_sloc(self, framework_loc: str | None = None) -> SLoc:
        return SLoc(_asking_file(), user_line())


def _asking_file() -> str:
    """The file that compares sizes: the user's, or one of torch that does so on its behalf."""
    frame, skipped = sys._getframe(1), {*uninteresting_files(), __file__}
    while frame.f_back is not None and frame.f_code.co_filename in skipped:
        frame = frame.f_back
    return frame.f_code.co_filename


def _by_dim(name: str, dims: Any, inputs: Mapping[str, torch.Tensor]) -> dict[int, str]:
    """The symbols of one input by dim, from 0."""
    if name not in inputs:
        raise TraceError(
            f"dynamic names {name!r}, which is no input", remedy=f"the inputs are {', '.join(inputs)}"
        )
    rank = inputs[name].dim()
    pairs = dims.items() if isinstance(dims, Mapping) else enumerate(dims)
    named = {dim: label for dim, label in pairs if label is not None}
    for dim, label in named.items():
        if not -rank <= dim < rank:
            raise TraceError(
                f"dynamic names dim {dim} of {name!r}, which has {rank} dims",
                remedy="count dims from 0",
            )
        if not label.isidentifier() or label in _RESERVED:
            raise TraceError(f"{label!r} cannot name a size", remedy="use a word such as batch or seq")
    return {dim % rank: label for dim, label in named.items()}


def _hints(by_input: Mapping[str, Mapping[int, str]], inputs: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """The number of each symbol in the example."""
    hints: dict[str, int] = {}
    for name, dims in by_input.items():
        for dim, label in dims.items():
            size = inputs[name].shape[dim]
            if hints.setdefault(label, size) != size:
                raise TraceError(
                    f"the size {label!r} is {hints[label]} and {size} in the example inputs",
                    remedy="give an example that agrees, or two names",
                )
            if size < 2:
                raise TraceError(
                    f"the size {label!r} is {size} in the example, where it looks like a dim that broadcasts",
                    remedy="give an example of at least 2; the program will take 1 as well",
                )
    return hints


def _asks_about_one(expr: Any) -> bool:
    """Whether a guard tells one element from several: ``seq != 1``, ``batch * seq >= 2``."""
    least = {sympy.Ne: 1, sympy.GreaterThan: 2, sympy.StrictGreaterThan: 1}.get(type(expr))
    if least is None or expr.args[1] != least:
        return False
    factors = expr.args[0].args if isinstance(expr.args[0], sympy.Mul) else expr.args[:1]
    return all(part.is_Symbol or part.is_Integer for part in factors)


def _is_asked_by_user(sloc: SLoc) -> bool:
    """Whether the user's own line compares, not torch on its behalf."""
    return not str(sloc.framework_loc).startswith(os.path.dirname(torch.__file__))


def _decided(expr: Any) -> tuple[Any, Any] | None:
    """In an equality, the one rounded or limited size that it tells the value of, and the value."""
    if not isinstance(expr, sympy.Eq):
        return None
    atoms = {part for part in sympy.preorder_traversal(expr) if type(part).__name__ in _ROUNDED}
    outer = [a for a in atoms if not any(a != b and b.has(a) for b in atoms)]
    value = _solve(expr, outer[0]) if len(outer) == 1 else None
    return None if value is None else (outer[0], value)


_ROUNDED = ("FloorDiv", "Min", "Max")


def _solve(expr: Any, atom: Any) -> Any:
    """The value of `atom` in an equality that is linear in it; None where it is not."""
    difference = sympy.expand(expr.args[0] - expr.args[1])
    factor = difference.coeff(atom)
    rest = sympy.expand(difference - factor * atom)
    if factor == 0 or rest.has(atom):
        return None
    value = sympy.cancel(-rest / factor)
    return value if value.is_polynomial() else None
