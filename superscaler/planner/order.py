"""Order: one decision of a script in time: this before that."""

from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Order(Generic[Item]):
    """`first` runs before `then`: names of operators, or tasks of a schedule."""

    first: Item
    then: Item
    where: str = ""
    """The script's line."""
