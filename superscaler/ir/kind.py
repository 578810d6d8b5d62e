"""Kind: what the compiler knows of one kind of operator; the rows of the tables in `superscaler.ir.kind_tables`."""

from collections.abc import Mapping
from dataclasses import dataclass

from superscaler.ir.shape_rules import RuleFunction

RuleSource = str | RuleFunction


@dataclass(frozen=True, slots=True)
class Kind:
    """What the compiler knows of one kind of operator."""

    rule: RuleSource
    call: str = ""
    """The function to call, as generated source names it; empty: ``torch.ops.<kind>``."""
    outputs: tuple[str, ...] = ("",)
    """A label per written tensor; empty: the tensor is named like the operator."""
    shape_argument: int | None = None
    """Position of the argument that is the shape of the (local) result."""
    starts: Mapping[str, str] | None = None
    """Keyword -> the letter whose piece's first index it is told, where the rule marks it ``@``."""
    lengths: Mapping[str, str] | None = None
    """Keyword -> the letter whose piece's length it is told."""
    boxed: bool = False
    """Whether the call is told where its first argument's piece lies: keywords ``starts`` and ``whole``."""
    linear: bool = False
    """Whether the call is jointly linear in all it reads: summands in, summands out."""
    linear_in: tuple[int, ...] = ()
    """Positions of the tensors it is jointly linear in, where not in all: the others are the same for all summands."""
    writes_into: tuple[int, ...] = ()
    """Positions of the tensors read that it writes into as well: stored ones that it alone reads, now and in later
    steps. So it may be left out where its result is not wanted, but runs once per step on each device that holds them,
    and nowhere else."""
    flops_per_point: float = 1.0
    """Arithmetic per point of the letters' product (2 for a matrix product)."""
    declared: bool = False
    """Whether a user declared the rule: it is believed once an experiment has shown that it is true."""
