"""Source: samples with numbers, of which a rank reads those it needs."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from superscaler.errors import BuildError
from superscaler.runtime.data.piece import Piece

Inputs = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""Name -> dtype and shape of each input of a model in one step."""


class Source(ABC):
    """Samples with numbers from 0 to `samples` - 1."""

    name: str
    """Of the data set, as messages say it."""
    samples: int

    @abstractmethod
    def check(self, inputs: Inputs) -> None:
        """Raise a BuildError where it can be told without reading samples that they do not fit."""

    @abstractmethod
    def sample_shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of an input in one sample; None where the input is missing."""

    @abstractmethod
    def read(self, pieces: Sequence[Piece]) -> list[Tensor]:
        """The pieces, on the CPU; nothing else is read.

        Raises:
            BuildError: A sample cannot be read, or does not fit.
        """


def check_rows(inputs: Inputs, whose: str) -> None:
    """Raise a BuildError where the first dim of some input does not count samples as that of the others does."""
    shapes = {name: list(shape) for name, (_, shape) in inputs.items()}
    counts = {shape[0] if shape else None for _, shape in inputs.values()}
    if len(counts) > 1 or counts == {None}:
        raise BuildError(
            f"the inputs of the model do not all have one row per sample: {shapes}; {whose} gives samples",
            remedy="give the data as a .safetensors file without --shuffle, or compile a model whose inputs do",
        )
