"""Feed: what batches are read from, samples numbered over all epochs."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from superscaler.runtime.data.order import Order
from superscaler.runtime.data.piece import Piece
from superscaler.runtime.data.source import Inputs, Source


class Feed(ABC):
    """What batches are read from: samples numbered from 0 without end, those of one epoch after another."""

    name: str
    """Of the data set, as messages say it."""
    samples: int | None
    """How many there are; None where that is not known yet."""

    @abstractmethod
    def check(self, inputs: Inputs) -> None:
        """Raise a BuildError where it can be told without reading samples that they do not fit."""

    @abstractmethod
    def sample_shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of an input in one sample; None where the input is missing."""

    @abstractmethod
    def read(self, pieces: Sequence[Piece], numbers: range) -> list[Tensor]:
        """The pieces, on the CPU; `numbers` are the samples of the step they belong to.

        Raises:
            BuildError: A sample cannot be read, or does not fit.
        """

    @abstractmethod
    def is_over(self, number: int) -> bool:
        """Whether sample `number` and what follows have been seen before."""

    @abstractmethod
    def place(self) -> dict[str, Any] | None:
        """Where it stands after what was read, if that is more than a number."""

    @abstractmethod
    def go_to(self, place: Mapping[str, Any]) -> None:
        """Go to a place that `place` returned, maybe in another process."""


class Ordered(Feed):
    """A source in an order."""

    def __init__(self, source: Source, seed: int | None = None) -> None:
        self.name, self._source = source.name, source
        self.samples: int = source.samples
        self._order = Order(source.samples, seed)

    def check(self, inputs: Inputs) -> None:
        """Raise a BuildError where it can be told without reading samples that they do not fit."""
        self._source.check(inputs)

    def sample_shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of an input in one sample; None where the input is missing."""
        return self._source.sample_shape(name)

    def read(self, pieces: Sequence[Piece], numbers: range) -> list[Tensor]:
        """The pieces, on the CPU."""
        return self._source.read([self._placed(piece) for piece in pieces])

    def is_over(self, number: int) -> bool:
        """Whether sample `number` and what follows have been seen before."""
        return number >= self.samples

    def place(self) -> dict[str, Any] | None:
        """Nothing: a sample's number is enough."""
        return None

    def go_to(self, place: Mapping[str, Any]) -> None:
        """Nothing: a sample's number is enough."""

    def _placed(self, piece: Piece) -> Piece:
        if not piece.runs:
            return piece
        return replace(piece, runs=(self._order.rows(piece.runs[0]), *piece.runs[1:]))
