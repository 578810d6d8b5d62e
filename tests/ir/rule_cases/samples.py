"""What sample calls of operators are written with: tensors to be drawn when the type of their elements is known."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch

from superscaler.ir.cut_experiment import CutExperiment


@dataclass(frozen=True)
class Sample:
    """A tensor to be drawn."""

    draw: Callable[[torch.dtype], torch.Tensor]


@dataclass(frozen=True)
class Case:
    """Arguments of one call."""

    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] = field(default_factory=dict)
    derive: Callable[[Callable[..., torch.Tensor]], "Case"] | None = None

    def call(self, kind: str, dtype: torch.dtype = torch.float64) -> CutExperiment:
        """The call, with its tensors drawn."""
        if self.derive:
            return self.derive(lambda *shape: real(*shape).draw(dtype)).call(kind, dtype)
        keywords = {key: _drawn(value, dtype) for key, value in self.keywords.items()}
        return CutExperiment(kind, *_drawn(list(self.arguments), dtype), **keywords)


def _drawn(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Sample):
        return value.draw(dtype)
    if isinstance(value, list):
        return [_drawn(item, dtype) for item in value]
    return value


def case(*arguments: Any, **keywords: Any) -> Case:
    """A call with these arguments."""
    return Case(arguments, keywords)


def derived(derive: Callable[[Callable[..., torch.Tensor]], Case]) -> Case:
    """A call whose arguments depend on each other: given a function that draws a tensor, the case."""
    return Case(derive=derive)


def real(*shape: int) -> Sample:
    """Normally distributed."""
    return Sample(lambda dtype: torch.randn(shape, dtype=torch.float64).to(dtype))


def positive(*shape: int) -> Sample:
    """Between 0.5 and 1.5."""
    return Sample(lambda dtype: (torch.rand(shape, dtype=torch.float64) + 0.5).to(dtype))


def fraction(*shape: int) -> Sample:
    """Between 0.1 and 0.9."""
    return Sample(lambda dtype: (torch.rand(shape, dtype=torch.float64) * 0.8 + 0.1).to(dtype))


def index(size: int, *shape: int) -> Sample:
    """Whole numbers below `size`."""
    return Sample(lambda dtype: torch.randint(size, shape))


def whole_numbers(*shape: int) -> Sample:
    """0, 1 and 2."""
    return index(3, *shape)


def flags(*shape: int) -> Sample:
    """True or False."""
    return Sample(lambda dtype: torch.rand(shape) < 0.5)


def distinct(size: int, *shape: int) -> Sample:
    """Whole numbers below `size`, no two equal: where the last of several writes would stay, order is undefined."""

    def draw(dtype: torch.dtype) -> torch.Tensor:
        rows = [torch.randperm(size)[: shape[-1]] for _ in range(prod(shape[:-1]))]
        return torch.stack(rows).reshape(shape)

    return Sample(draw)


def ordered(*shape: int) -> Sample:
    """Rows of rising numbers."""
    return Sample(lambda dtype: real(*shape).draw(dtype).sort(-1).values)
