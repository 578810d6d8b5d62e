"""Emitted: the source of one function, and the arguments it may have."""

from dataclasses import dataclass

ORDER = (
    "batch",
    "saved",
    "p",
    "gathered",
    "fetched",
    "state",
    "grads",
    "kept",
    "at",
    "key",
    "step",
    "mb",
    "rt",
    "is_last",
)
"""Order of the arguments every function may have, behind the values it is given."""


@dataclass(frozen=True)
class Emitted:
    """The source of one function, and how it is called."""

    name: str
    parameters: tuple[str, ...]
    lines: tuple[str, ...]
    uses: frozenset[str] = frozenset()
