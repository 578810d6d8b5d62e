"""Lifetimes: until when the values of a function are read, as it is written item by item."""

from collections.abc import Callable, Collection, Sequence
from typing import Any


class Lifetimes:
    """Which values a function still reads; before it begins, none."""

    def __init__(self) -> None:
        self.here = 0
        """Number of the item that is being written."""
        self._end = 0
        self._last: dict[str, int] = {}
        """Value -> number of the last item that reads it."""

    def begin(
        self, items: Sequence[Any], outputs: Collection[str], reads: Callable[[Any], Collection[str]]
    ) -> None:
        """Look ahead at all items; outputs are read behind the last."""
        self.here, self._end = 0, len(items)
        self._last = {name: number for number, item in enumerate(items) for name in reads(item)}
        self._last.update(dict.fromkeys(outputs, len(items)))

    @property
    def is_at_end(self) -> bool:
        """Whether the last item is being written."""
        return self.here == self._end - 1

    def is_read_after(self, value: str, number: int) -> bool:
        """Whether an item behind item `number` reads a value, or it is an output."""
        return self._last.get(value, -1) > number

    def is_read_later(self, value: str) -> bool:
        """Whether a value is read after the current item."""
        return self.is_read_after(value, self.here)

    def is_read_from_here(self, value: str) -> bool:
        """Whether the current item or one after it reads a value."""
        return self.is_read_after(value, self.here - 1)
