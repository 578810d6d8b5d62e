"""Policies: who goes first when there is not room for all.

A policy gives each sequence a rank. The scheduler admits the lowest first, and when memory runs out the highest
makes room. A new policy is a class here, or in a file of its own, and a row in the table at the bottom.
"""

from collections.abc import Callable
from typing import ClassVar, Protocol

from superscaler.errors import ServingError
from superscaler.runtime.serving.request import Request, Sequence

Rank = tuple[float, ...]
"""Lower goes first; between equals, who came first. All ranks of one policy have the same length."""


class Policy(Protocol):
    """Ranks sequences. It is told of all that happens, and may keep account of it; by default it does not."""

    preempts: ClassVar[bool] = False
    """Whether a waiting sequence may take the room of a running one with a higher rank."""

    def rank(self, sequence: Sequence, now: float) -> Rank:
        """Where the sequence stands at `now`, in seconds; asked once per step for every sequence not finished."""
        ...

    def arrived(self, request: Request, now: float) -> None:
        """The request is taken in."""

    def served(self, sequence: Sequence, tokens: int, seconds: float, now: float) -> None:
        """A step of so many seconds computed so many of the sequence's tokens; it ended at `now`."""

    def ended(self, request: Request, now: float) -> None:
        """All sequences of the request have ended, finished or not."""


class FirstCome(Policy):
    """Whoever came first goes first."""

    def rank(self, sequence: Sequence, now: float) -> Rank:
        """Seconds at arrival."""
        return (sequence.request.arrival,)


class Priority(Policy):
    """Whoever has the lowest `priority` goes first, also before those who run already."""

    preempts = True

    def rank(self, sequence: Sequence, now: float) -> Rank:
        """Priority, then seconds at arrival."""
        return (sequence.request.priority, sequence.request.arrival)


class Shortest(Policy):
    """Whoever has the fewest tokens to go, as far as its `max_tokens` tells, goes first."""

    preempts = True

    def rank(self, sequence: Sequence, now: float) -> Rank:
        """Most tokens still to be computed, those of the prompt and those still to come."""
        return (sequence.most_tokens - sequence.computed, sequence.request.arrival)


POLICIES: dict[str, Callable[[], Policy]] = {
    "fcfs": FirstCome,
    "priority": Priority,
    "shortest": Shortest,
}
"""Policies by the names that users give."""


def make_policy(name: str) -> Policy:
    """The policy with this name.

    Raises:
        ServingError: There is none.
    """
    if name not in POLICIES:
        raise ServingError(
            f"no policy is called {name!r}", remedy=f"choose one of {', '.join(sorted(POLICIES))}"
        )
    return POLICIES[name]()
