"""Profile database: measured seconds of operators, by the exact call and device, in a file that can be shared.

A call is written ``linear(float32[16, 8], float32[4, 8], None) -> float32[16, 4] on A100-80GB``: what it reads, the
arguments that are no tensors, what it writes, and the name of the device. What was measured counts; all else is priced
by the device's curves.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from superscaler.errors import PlanError
from superscaler.ir.graph import Operator, map_refs
from superscaler.ir.kinds import row_of

FORMAT = 1
UNTIMED = {"key"}
"""Keywords that do not change how long a call takes: which random numbers it draws."""
TIMED = (int, str, tuple, list, type(None))
"""What keywords may be that do; those that are other numbers, such as a learning rate, do not."""


@dataclass(frozen=True)
class ProfileDatabase:
    """Seconds by call."""

    seconds: Mapping[str, float] = field(default_factory=dict)

    @staticmethod
    def load(path: str | Path) -> "ProfileDatabase":
        """Read a database.

        Raises:
            PlanError: when the file is missing, damaged, or of another format.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
            if document["format"] != FORMAT:
                raise ValueError(f"format {document['format']}, this version reads {FORMAT}")
            return ProfileDatabase({call: float(value) for call, value in document["seconds"].items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise PlanError(
                f"cannot read the profile database {path}: {error}",
                remedy="write a new one with superscaler profile --database",
            ) from error

    def merged(self, other: "ProfileDatabase") -> "ProfileDatabase":
        """The calls of both; where both know one, `other` counts."""
        return ProfileDatabase({**self.seconds, **other.seconds})

    def save(self, path: str | Path) -> None:
        """Write a file that `load` reads."""
        document = {"format": FORMAT, "seconds": dict(sorted(self.seconds.items()))}
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        fresh.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        os.replace(fresh, path)


NOTHING_MEASURED = ProfileDatabase()


def call_text(operator: Operator, reads: Sequence[str], writes: Sequence[str], device: str) -> str:
    """The call of an operator (or a piece of it) as the database names it.

    Args:
        operator: Its kind and its arguments; those that say the shape of a piece are left out, as `writes` tells it.
        reads: Per tensor it reads dtype and shape, ``float32[16, 8]``.
        writes: The same of what it writes.
        device: Name of the kind of device.
    """
    row = row_of(operator)
    given = [
        str(map_refs(value, lambda ref: _Text(reads[ref.index])))
        for index, value in enumerate(operator.arguments)
        if index != row.shape_argument
    ]
    given += [
        f"{name}={value}"
        for name, value in operator.keywords
        if name not in {*UNTIMED, *(row.lengths or ())} and isinstance(value, TIMED)
    ]
    return f"{operator.kind}({', '.join(given)}) -> {', '.join(writes)} on {device}"


class _Text(str):
    """Text that prints without quotes in a tuple."""

    __repr__ = str.__str__
