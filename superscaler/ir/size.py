"""Size: a whole number that varies from run to run, such as the samples of a batch, with the number of an example.

A Size is an ``int``, the example's number, so arithmetic and comparisons work on it as on any size. It also carries
an exact expression of named symbols, which ``+ - * // %`` propagate, and two Sizes are equal only if their expressions
are: ``batch`` is not 8, even where the example has 8 samples, and ``2 * batch // 2`` is ``batch``.

The expression is a polynomial with rational coefficients, so that pieces of an even cut add up to the whole
(``batch / 2 + batch / 2`` is ``batch``). What is no polynomial, such as ``seq // 3`` or ``min(seq, 32)``, is a factor
of its own, told apart by its text.
"""

import ast
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from fractions import Fraction
from functools import cache
from math import lcm
from typing import Any

from superscaler.errors import SizeError

Monomial = tuple[str, ...]
"""Factors, sorted; a factor that stands twice is squared."""
Terms = dict[Monomial, Fraction]


class Size(int):
    """A number that varies. Make one with `symbol`, or compute it from others."""

    terms: Terms
    _text: str

    def __new__(cls, hint: int, terms: Terms) -> "Size":
        """Join the example's number and the expression; `symbol` makes the first."""
        self = super().__new__(cls, hint)
        self.terms = terms
        self._text = _format(terms)
        return self

    def __getnewargs__(self) -> tuple[int, Terms]:  # type: ignore[override]
        return int(self), self.terms

    def __str__(self) -> str:
        """Print as ``2 * batch * seq + 1``; an exact quotient as ``batch / 2``."""
        return self._text

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return format(int(self), spec) if spec else self._text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Size) and self._text == other._text

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self._text)

    def __add__(self, other: int) -> int:
        if not isinstance(other, int):
            return NotImplemented
        terms = dict(self.terms)
        for monomial, factor in _terms(other).items():
            terms[monomial] = terms.get(monomial, Fraction()) + factor
        return _size(int(self) + int(other), terms)

    __radd__ = __add__

    def __neg__(self) -> int:
        return self * -1

    def __sub__(self, other: int) -> int:
        return self + -other

    def __rsub__(self, other: int) -> int:
        return -self + other

    def __mul__(self, other: int) -> int:
        if not isinstance(other, int):
            return NotImplemented
        terms: Terms = {}
        for first, a in self.terms.items():
            for second, b in _terms(other).items():
                monomial = tuple(sorted(first + second))
                terms[monomial] = terms.get(monomial, Fraction()) + a * b
        return _size(int(self) * int(other), terms)

    __rmul__ = __mul__

    def __pow__(self, exponent: int) -> int:  # type: ignore[override]
        result: int = 1
        for _ in range(exponent):
            result = result * self
        return result

    def __floordiv__(self, other: int) -> int:
        return _divide(self, other) if isinstance(other, int) else NotImplemented

    def __rfloordiv__(self, other: int) -> int:
        return _divide(other, self)

    def __mod__(self, other: int) -> int:
        return _remainder(self, other) if isinstance(other, int) else NotImplemented

    def __rmod__(self, other: int) -> int:
        return _remainder(other, self)

    def at(self, sizes: Mapping[str, int]) -> int:
        """The number where the symbols have these values."""
        return evaluate(self._text, sizes)


def symbol(name: str, hint: int) -> Size:
    """A size of its own: `name`, of which `hint` is an example."""
    return Size(hint, {(name,): Fraction(1)})


def exact_quotient(size: int, count: int) -> int:
    """One of `count` equal pieces; that they are equal is for the caller to require of a Size."""
    if isinstance(size, Size):
        return _size(int(size) // int(count), {m: factor / count for m, factor in size.terms.items()})
    return size // count


def smallest(*sizes: int) -> int:
    """The least of several sizes, whichever it is when they are known."""
    return _choice("min", min(map(int, sizes)), sizes)


def largest(*sizes: int) -> int:
    """The largest of several sizes, whichever it is when they are known."""
    return _choice("max", max(map(int, sizes)), sizes)


def _choice(name: str, hint: int, sizes: Sequence[int]) -> int:
    different = sorted(set(sizes), key=str)
    if len(different) == 1:
        return different[0]
    return _opaque(f"{name}({', '.join(map(str, different))})", hint, different)


def _terms(size: int) -> Terms:
    return size.terms if isinstance(size, Size) else {(): Fraction(size)}


def _size(hint: int, terms: Terms) -> int:
    """A Size, or a plain number where no symbol is left."""
    terms = {monomial: factor for monomial, factor in terms.items() if factor}
    if not set(terms) - {()}:
        return int(terms.get((), 0))
    return Size(hint, terms)


def _opaque(text: str, hint: int, operands: Sequence[int]) -> int:
    return Size(hint, {(text,): Fraction(1)}) if any(isinstance(o, Size) for o in operands) else hint


def _divide(first: int, second: int) -> int:
    quotient = _exact(first, second)
    hint = int(first) // int(second)
    if quotient is not None:
        return _size(hint, quotient)
    return _opaque(f"{in_brackets(first)} // {in_brackets(second)}", hint, (first, second))


def _remainder(first: int, second: int) -> int:
    if _exact(first, second) is not None:
        return 0
    text = f"{in_brackets(first)} % {in_brackets(second)}"
    return _opaque(text, int(first) % int(second), (first, second))


def _exact(first: int, second: int) -> Terms | None:
    """The polynomial `first` / `second`, by long division; None where there is none, or it divides anew."""
    rest = {monomial: factor for monomial, factor in _terms(first).items() if factor}
    divisor = _terms(second)
    lead = max(divisor, key=_order)
    quotient: Terms = {}
    while rest:
        highest = max(rest, key=_order)
        monomial = _without(highest, lead)
        if monomial is None:
            return None
        quotient[monomial] = factor = rest[highest] / divisor[lead]
        for other, b in divisor.items():
            product = tuple(sorted(monomial + other))
            rest[product] = rest.get(product, Fraction()) - factor * b
            if not rest[product]:
                del rest[product]
    given = _denominator(_terms(first))
    return quotient if given % _denominator(quotient) == 0 else None


def _order(monomial: Monomial) -> tuple[int, Monomial]:
    return len(monomial), monomial


def _without(monomial: Monomial, factors: Monomial) -> Monomial | None:
    rest = list(monomial)
    for factor in factors:
        if factor not in rest:
            return None
        rest.remove(factor)
    return tuple(rest)


def _denominator(terms: Terms) -> int:
    return lcm(*(factor.denominator for factor in terms.values()))


# text

_NAME = re.compile(r"[A-Za-z_]\w*")


def _format(terms: Terms) -> str:
    below = _denominator(terms)
    if list(terms.values()) == [1] and len(next(iter(terms))) == 1:
        return next(iter(terms))[0]
    parts: list[str] = []
    for monomial, factor in sorted(terms.items(), key=lambda item: (-len(item[0]), item[0])):
        count = int(factor * below)
        factors = [name if _NAME.fullmatch(name) or _is_call(name) else f"({name})" for name in monomial]
        shown = ([str(abs(count))] if abs(count) != 1 or not factors else []) + factors
        sign = "-" if count < 0 else "+"
        parts += [sign, " * ".join(shown)] if parts else ["-" * (sign == "-") + " * ".join(shown)]
    text = " ".join(parts)
    if below == 1:
        return text
    return f"({text}) / {below}" if len(terms) > 1 else f"{text} / {below}"


def _is_call(text: str) -> bool:
    """Whether a text is one call of min or max, and nothing beside it."""
    depth = 0
    for position, sign in enumerate(text):
        depth += (sign == "(") - (sign == ")")
        if sign == ")" and not depth:
            return text.startswith(("min(", "max(")) and position == len(text) - 1
    return False


def in_brackets(size: int) -> str:
    """The text of a size, in parentheses where an operator beside it would bind tighter."""
    text = str(size)
    return text if _NAME.fullmatch(text) or text.isdecimal() or _is_call(text) else f"({text})"


def as_python(size: int, name_of: Callable[[str], str]) -> str:
    """The expression as Python source, with the symbols under other names."""
    text = str(size).replace(" / ", " // ")
    return _NAME.sub(lambda match: match[0] if match[0] in ("min", "max") else name_of(match[0]), text)


def symbols_in(text: str) -> list[str]:
    """The symbols an expression or a condition names, in order."""
    words = ("min", "max", "and", "or", "not")
    return list(dict.fromkeys(name for name in _NAME.findall(text) if name not in words))


_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod, ast.Div: exact_quotient, ast.Pow: operator.pow,
}  # fmt: skip
_COMPARE: dict[type, Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip


def evaluate(text: str, sizes: Mapping[str, int]) -> Any:
    """The value of an expression (``2 * batch``), a condition (``seq <= 32``) or a tuple, as Sizes print them.

    Raises:
        ValueError: The text is neither, or names an unknown symbol.
    """
    return _value(_parsed(text), sizes)


@cache
def _parsed(text: str) -> ast.expr:
    try:
        return ast.parse(text, mode="eval").body
    except SyntaxError:
        raise ValueError(f"{text!r} is no expression of sizes") from None


def _value(node: ast.expr, sizes: Mapping[str, int]) -> Any:
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.Name(id=name) if name in sizes:
            return sizes[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_value(left, sizes), _value(right, sizes))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, sizes)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _value(operand, sizes)
        case ast.BoolOp(op=op, values=values):
            return (all if isinstance(op, ast.And) else any)(_value(value, sizes) for value in values)
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARE:
            return _COMPARE[type(op)](_value(left, sizes), _value(right, sizes))
        case ast.Tuple(elts=items):
            return tuple(_value(item, sizes) for item in items)
        case ast.Call(func=ast.Name(id="min" | "max" as name), args=args):
            return (smallest if name == "min" else largest)(*(_value(arg, sizes) for arg in args))
    raise ValueError(f"{ast.unparse(node)!r} is no expression of the sizes {', '.join(sizes)}")


# from symbols to numbers


@dataclass(frozen=True, slots=True)
class Requirement:
    """What must hold of the sizes of a run."""

    condition: str
    """``seq <= 32``."""
    reason: str
    """Who asks for it: a line of the model, or a cut of the plan."""


def at_sizes(value: Any, sizes: Mapping[str, int]) -> Any:
    """The same value, whatever it is made of, with numbers in place of Sizes."""
    if isinstance(value, Size):
        return value.at(sizes)
    if isinstance(value, (tuple, list)):
        return type(value)(at_sizes(item, sizes) for item in value)
    if isinstance(value, Mapping):
        return {key: at_sizes(item, sizes) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        old = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
        new = {name: at_sizes(item, sizes) for name, item in old.items()}
        return replace(value, **new) if any(new[name] is not old[name] for name in old) else value
    return value


def bind_sizes(
    declared: Mapping[str, Sequence[int]],
    found: Mapping[str, Sequence[int]],
    requirements: Sequence[Requirement],
    whose: str,
) -> dict[str, int]:
    """The value of every symbol, from the shapes of a run's inputs.

    Args:
        declared: Input -> its shape, with Sizes where it varies.
        found: Input -> the shape it has.
        requirements: What must hold.
        whose: What makes the demands, as messages name it: ``the graph 'gpt'``.

    Raises:
        SizeError: A shape is none of those declared, one symbol would have two values, or a requirement fails.
    """
    sizes: dict[str, int] = {}
    origin: dict[str, str] = {}
    for name, shape in declared.items():
        given = tuple(found[name])
        wanted = f"the input {name!r} of {whose} is {list(shape)}, not {list(given)}"
        if len(given) != len(shape):
            raise SizeError(wanted, remedy=f"give it {len(shape)} dims")
        for dim, (size, actual) in enumerate(zip(shape, given, strict=True)):
            place = f"dim {dim} of {name!r} {list(given)}"
            if not isinstance(size, Size):
                if size != actual:
                    raise SizeError(
                        wanted, remedy=f"dim {dim} is fixed: make it {size}, or let it vary (dynamic=...)"
                    )
                continue
            if sizes.setdefault(str(size), actual) != actual:
                raise SizeError(
                    f"{size} is {sizes[str(size)]} in {origin[str(size)]}, but {actual} in {place}",
                    remedy="give inputs that agree, or compile with a name of its own for each",
                )
            origin.setdefault(str(size), place)
    for name, value in sizes.items():
        if value < 1:
            raise SizeError(f"{name} is {value} in {origin[name]}", remedy="give at least one")
    for requirement in requirements:
        if not evaluate(requirement.condition, sizes):
            names = symbols_in(requirement.condition)
            values = ", ".join(f"{name} is {sizes[name]} ({origin[name]})" for name in names)
            raise SizeError(
                f"{whose} needs {requirement.condition}, but {values}",
                where=requirement.reason,
                remedy=f"choose sizes with {requirement.condition}, or compile without what asks for it",
            )
    return sizes
