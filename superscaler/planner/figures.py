"""Figures: what is said of hardware must be positive numbers."""

from dataclasses import fields
from typing import Any

from superscaler.errors import PlanError


def check_positive(what: str, figures: Any) -> None:
    """Refuse a dataclass with a number that is not positive.

    Args:
        what: What it is, for the message.
        figures: The dataclass; fields that hold no numbers are passed over.

    Raises:
        PlanError: A number is zero, negative or none at all.
    """
    for field in fields(figures):
        value = getattr(figures, field.name)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not value > 0:
            raise PlanError(f"{what}: {field.name} is {value}", remedy="give a positive number")
