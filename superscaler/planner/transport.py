"""Transport: what a communication library makes of a link: its protocols, and the price of starting it, as data."""

from dataclasses import dataclass, replace
from enum import StrEnum

from superscaler.errors import PlanError
from superscaler.ir.bucket import JOINED_BYTES
from superscaler.planner.figures import check_positive


class Collective(StrEnum):
    """What devices do together, or in pairs (`SEND`)."""

    ALL_REDUCE = "all_reduce"
    ALL_GATHER = "all_gather"
    REDUCE_SCATTER = "reduce_scatter"
    ALL_TO_ALL = "all_to_all"
    BROADCAST = "broadcast"
    SEND = "send"


@dataclass(frozen=True, slots=True)
class Protocol:
    """One way to move bytes: quick to start, or making good use of the link."""

    latency: float
    """Its latency per hop, as a multiple of the link's."""
    bandwidth: float
    """Fraction of the link's bandwidth it reaches."""

    def __post_init__(self) -> None:
        check_positive("a protocol", self)


@dataclass(frozen=True, slots=True)
class Measured:
    """How one collective differs from what its formula says of the links."""

    latency: float = 1.0
    """Multiple of the link's latency."""
    bandwidth: float = 1.0
    """Multiple of the link's bandwidth."""

    def __post_init__(self) -> None:
        check_positive("a measured collective", self)


@dataclass(frozen=True, slots=True)
class Transport:
    """A communication library."""

    name: str
    launch_seconds: float
    """Added to every collective and message."""
    protocols: tuple[Protocol, ...]
    """Of these the fastest is used, so that small messages are quick and large ones use the link well."""
    has_trees: bool
    """Whether all-reduce and broadcast may run along trees over nodes, of logarithmic depth."""
    measured: tuple[tuple[Collective, Measured], ...] = ()

    def __post_init__(self) -> None:
        if not self.protocols or not self.launch_seconds >= 0:
            raise PlanError(
                f"transport {self.name!r}: {len(self.protocols)} protocols that start in {self.launch_seconds} seconds",
                remedy="give at least one protocol, and launch_seconds of 0 or more",
            )

    @property
    def joined_bytes(self) -> int:
        """Up to how many bytes programs join small tensors for one message: those that gloo serves are on CPUs."""
        return JOINED_BYTES["cpu" if self.takes_cores else "cuda"]

    @property
    def takes_cores(self) -> bool:
        """Whether the cores that compute also communicate, as with gloo, so that neither goes on beside the other."""
        return self.name == "gloo"

    def correction(self, collective: Collective) -> Measured:
        """How a collective was measured to differ from its formula."""
        return dict(self.measured).get(collective, Measured())

    def with_measured(self, collective: Collective, measured: Measured) -> "Transport":
        """The same, with the correction of one collective replaced."""
        rest = tuple(pair for pair in self.measured if pair[0] is not collective)
        return replace(self, measured=tuple(sorted((*rest, (collective, measured)))))


# NCCL's own model of itself (src/graph/tuning.cc): a hop takes 0.6, 1.9 and 3.4 microseconds over NVLink by the
# protocols LL, LL128 and Simple, and 2.7, 4.0 and 14 over a network, of whose bandwidth they reach 1/4, 120/128 and
# all; it starts in 6.6 to 14 microseconds.
NCCL = Transport(
    "nccl",
    launch_seconds=8e-6,
    protocols=(Protocol(0.18, 0.25), Protocol(0.45, 0.92), Protocol(1.0, 1.0)),
    has_trees=True,
)
GLOO = Transport("gloo", launch_seconds=1e-4, protocols=(Protocol(1.0, 1.0),), has_trees=False)
"""Of a laptop: guesses, which `superscaler profile` replaces."""
IDEAL = Transport("ideal", launch_seconds=0.0, protocols=(Protocol(1.0, 1.0),), has_trees=False)
"""Links at their latency and bandwidth: the formulas of the textbook."""
