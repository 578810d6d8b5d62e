"""A sample call: an operator of a graph run on random values, of the shapes it was traced with or of smaller ones."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch

from superscaler.ir.graph import Operator
from superscaler.ir.interpret import call_operator
from superscaler.ir.rules import Shape

STYLES = ("normal", "positive", "wide")
"""How floating-point values are drawn: some operators want positive ones, some saturate on small ones."""
_SMALL = 1 << 14
"""Elements read up to which a call is tried as it was traced before smaller shapes are."""
_LARGEST = 1 << 24
"""Elements read up to which an operator is run at all."""
_SIZES = (4, 6, 8, 10, 9, 12, 14, 15)
"""Sizes for dims, composite so that they can be cut evenly and not."""
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}


class NotRunnable(Exception):
    """The operator raises on any values; the message is that of its error."""


class NotRepeatable(Exception):
    """The operator gives other results for the same values."""


@dataclass(frozen=True, slots=True)
class CallShape:
    """What a call of an operator takes and gives, without values."""

    operator: Operator
    reads: tuple[Shape, ...]
    dtypes: tuple[torch.dtype, ...]
    """Of what it reads."""
    writes: tuple[Shape, ...]

    @property
    def num_elements(self) -> int:
        """Elements of all it reads and writes."""
        return sum(map(prod, self.reads + self.writes))


@dataclass(frozen=True, slots=True)
class SampleCall:
    """One call with its values."""

    operator: Operator
    values: tuple[torch.Tensor, ...]
    results: tuple[torch.Tensor, ...]
    rounding: float
    """Difference, relative to the largest value, that is put down to rounding."""

    @property
    def shapes(self) -> tuple[tuple[Shape, ...], tuple[Shape, ...]]:
        """Of what it reads and writes."""
        return tuple(tuple(v.shape) for v in self.values), tuple(tuple(r.shape) for r in self.results)

    def run(self, values: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The results for other values."""
        return call_operator(self.operator, values)

    def agrees(self, result: torch.Tensor, whole: torch.Tensor) -> bool:
        """Whether a result is `whole` up to rounding."""
        if result.shape != whole.shape or result.dtype != whole.dtype:
            return False
        if not _is_inexact(whole.dtype):
            return torch.equal(result, whole)
        finite = whole[whole.isfinite()].abs()
        scale = float(finite.max()) if finite.numel() else 0.0
        return torch.allclose(result, whole, rtol=0.0, atol=self.rounding * max(scale, 1e-30), equal_nan=True)


def sample_calls(call: CallShape) -> Iterator["Sampler"]:
    """Ways to run the call, the most telling first: double precision before its own, small before large.

    Raises:
        NotRunnable: There is no way at all.
        NotRepeatable: It runs, and twice the same gives different results.
    """
    found, last = False, "it is too large to be run for a test"
    changing = False
    for device in ("cpu", "cuda")[: 1 + torch.cuda.is_available()]:
        for shape in _shapes(call):
            for dtypes in _dtypes(call):
                sampler = Sampler(shape, dtypes, device)
                try:
                    checked = sampler.checked()
                except NotRepeatable:
                    changing = True
                except Exception as error:
                    last = f"{type(error).__name__}: {error}"
                else:
                    found = True
                    yield checked
        if found:
            return
    if changing:
        raise NotRepeatable
    raise NotRunnable(last)


@dataclass(frozen=True, slots=True)
class Sampler:
    """Draws sample calls of one operator at some shapes, dtypes and device."""

    call: CallShape
    dtypes: tuple[torch.dtype, ...]
    device: str
    rounding: float = 0.0

    def sample(self, seed: int, style: str = "normal", highest: int = 2) -> SampleCall:
        """Run the operator on random values; integers are below `highest`."""
        generator = torch.Generator().manual_seed(seed)
        values = tuple(
            _draw(shape, dtype, generator, style, highest).to(self.device)
            for shape, dtype in zip(self.call.reads, self.dtypes, strict=True)
        )
        results = call_operator(self.call.operator, values)
        return SampleCall(self.call.operator, values, results, self.rounding)

    def checked(self) -> "Sampler":
        """The same, knowing how the operator rounds; raises what the operator raises.

        Raises:
            NotRepeatable: Twice the same gives different results.
            ValueError: It gives results of other shapes than expected.
        """
        sample = self.sample(0)
        if sample.shapes[1] != self.call.writes:
            raise ValueError(f"it gives results of shapes {sample.shapes[1]}, not {self.call.writes}")
        known = replace(self, rounding=_rounding(sample))
        again = sample.run(sample.values)
        if not all(map(replace(sample, rounding=known.rounding).agrees, again, sample.results)):
            raise NotRepeatable
        return known

    def styles(self) -> list[str]:
        """Styles whose results are numbers, where there are such styles."""
        numbers = []
        for style in STYLES:
            results = self.sample(1, style).results
            if all(r.isfinite().all() for r in results if _is_inexact(r.dtype)):
                numbers.append(style)
        return numbers or ["normal", "positive"]

    def highest(self) -> int:
        """The largest bound of integers that any of them may be an index below."""
        return max(2, min((size for shape in self.call.reads for size in shape if size > 1), default=2))


def _rounding(sample: SampleCall) -> float:
    tensors = (*sample.values, *sample.results)
    inexact = [t.dtype.to_real() for t in tensors if _is_inexact(t.dtype)]
    rounding = max((_ROUNDING.get(dtype, 0.2) for dtype in inexact), default=0.0)
    if rounding != _ROUNDING[torch.float64]:
        return rounding
    after = sample.run([v * (1 + 1e-10) if _is_inexact(v.dtype) else v for v in sample.values])
    computes_in_single = all(map(torch.equal, after, sample.results))
    return _ROUNDING[torch.float32] if computes_in_single else rounding


def _is_inexact(dtype: torch.dtype) -> bool:
    """Whether numbers of a dtype are rounded."""
    return dtype.is_floating_point or dtype.is_complex


def redraw(value: torch.Tensor, seed: int) -> torch.Tensor:
    """Other values of the same dtype, each different from the one before."""
    if value.dtype == torch.bool:
        return ~value
    if not _is_inexact(value.dtype):
        return 1 - value.clamp(0, 1)
    noise = torch.rand(value.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return value + (noise + 0.5).to(value)


def _draw(
    shape: Shape, dtype: torch.dtype, generator: torch.Generator, style: str, highest: int
) -> torch.Tensor:
    if dtype == torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    if dtype.is_complex:
        parts = (_draw(shape, torch.float64, generator, style, highest) for _ in range(2))
        return torch.complex(*parts).to(dtype)
    if not dtype.is_floating_point:
        lowest = 0 if shape else 1  # the number of a step, a count: no index
        return torch.randint(lowest, highest + lowest, shape, generator=generator).to(dtype)
    if style == "positive":
        return (torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5).to(dtype)
    spread = 20.0 if style == "wide" else 1.0
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * spread).to(dtype)


def _dtypes(call: CallShape) -> Iterator[tuple[torch.dtype, ...]]:
    wide = tuple(torch.float64 if dtype.is_floating_point else dtype for dtype in call.dtypes)
    yield wide
    if wide != call.dtypes:
        yield call.dtypes


def _shapes(call: CallShape) -> Iterator[CallShape]:
    """The call as traced, and with other sizes; equal sizes stay equal, products products."""
    if call.num_elements <= _SMALL:
        yield call
    sizes = {size for shape in call.reads + call.writes for size in shape if size > 1}
    for smallest in (2, 5):
        table = _other_sizes({size for size in sizes if size >= smallest})
        for arguments in (table, {}):
            yield _resized(call, table, arguments)
    if _SMALL < call.num_elements <= _LARGEST:
        yield call


def _other_sizes(sizes: set[int]) -> dict[int, int]:
    """Another size for each; a product of two of them, or a small multiple of one, stays that."""
    table: dict[int, int] = {}
    fresh = iter((*_SIZES, *range(16, 16 + len(sizes))))
    for size in sorted(sizes):
        factors = ((a, size // a) for a in sorted(table, reverse=True) if size % a == 0)
        products = (table[a] * table.get(b, b) for a, b in factors if b in table or b <= 4)
        table[size] = next(products, None) or next(fresh)
    return table


def _resized(call: CallShape, table: Mapping[int, int], arguments: Mapping[int, int]) -> CallShape:
    def shape(old: Shape) -> Shape:
        return tuple(table.get(size, size) for size in old)

    def argument(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(argument(item) for item in value)
        is_size = isinstance(value, int) and not isinstance(value, bool)
        return arguments.get(value, value) if is_size else value

    operator = replace(
        call.operator,
        arguments=tuple(argument(item) for item in call.operator.arguments),
        keywords=tuple((key, argument(item)) for key, item in call.operator.keywords),
    )
    return CallShape(operator, tuple(map(shape, call.reads)), call.dtypes, tuple(map(shape, call.writes)))
