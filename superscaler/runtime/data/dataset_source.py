"""A map-style dataset: an object with a length whose samples are had by number."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from superscaler.errors import BuildError
from superscaler.runtime.data.conversion import as_tensor
from superscaler.runtime.data.piece import Piece
from superscaler.runtime.data.samples import sample_value, stack_pieces
from superscaler.runtime.data.source import Inputs, Source, check_rows
from superscaler.runtime.data.users_code import users_error


class DatasetSource(Source):
    """The samples of a ``torch.utils.data.Dataset``, of a ``datasets.Dataset``, or of a list.

    Sample i must be the same whenever and on whichever rank it is asked for: two ranks may each read a part of it.
    A rank asks for the samples its pieces lie in, once per step each; several at a time where the dataset has
    ``__getitems__``, as PyTorch's own loader does.

    Args:
        dataset: Has ``len`` and ``[]``; a sample is a mapping or a sequence of tensors, arrays, numbers or lists.
        name: As messages say it.
        inputs: The inputs of the model.

    Raises:
        BuildError: It has no samples, or ``len`` of it fails.
    """

    def __init__(self, dataset: Any, name: str, inputs: Inputs) -> None:
        self.name, self._dataset, self._names = name, dataset, tuple(inputs)
        try:
            self.samples = len(dataset)
        except Exception as error:
            raise users_error(error, f"the length of {name} cannot be had") from error
        if self.samples < 1:
            raise BuildError(f"{name} has no samples", remedy="give a dataset whose `len` is at least 1")

    def check(self, inputs: Inputs) -> None:
        """Raise a BuildError where the inputs are not one row per sample."""
        check_rows(inputs, self.name)

    def sample_shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of an input in sample 0, which is read."""
        return shape_in(self._fetch([0])[0], name, self._names)

    def read(self, pieces: Sequence[Piece]) -> list[Tensor]:
        """The pieces of the samples they lie in."""
        numbers = sorted({number for piece in pieces for number in piece.samples})
        return stack_pieces(self._fetch(numbers), pieces, self._names, self.name)

    def _fetch(self, numbers: list[int]) -> dict[int, Any]:
        together = getattr(self._dataset, "__getitems__", None)
        if together is None or not numbers:
            return {number: self._fetch_one(number) for number in numbers}
        try:
            samples = together(numbers)
        except Exception as error:
            for number in numbers:
                self._fetch_one(number)  # says which it is, if it is one
            what = f"samples {numbers[0]} to {numbers[-1]} of {self.name} cannot be read together"
            raise users_error(error, what) from error
        return dict(zip(numbers, samples, strict=True))

    def _fetch_one(self, number: int) -> Any:
        try:
            return self._dataset[number]
        except Exception as error:
            raise users_error(error, f"sample {number} of {self.name} cannot be read") from error


def shape_in(sample: Any, name: str, names: Sequence[str]) -> tuple[int, ...] | None:
    """The shape of an input in a sample; None where it has none, which `read` says better."""
    try:
        return tuple(as_tensor(sample_value(sample, name, names), torch.float64).shape)
    except (LookupError, ValueError, TypeError, RuntimeError):
        return None
