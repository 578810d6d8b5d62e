"""What a running engine learns from its own steps: seconds by count, and how often each child is accepted."""

from bisect import bisect_left
from collections.abc import Sequence
from math import log


class Curve:
    """Seconds as a function of a count, from noisy measurements.

    A mean for each neighbourhood of counts, of the last measurements there; made to rise, since more work takes no
    less time; straight lines between.
    """

    def __init__(self, window: int = 32, width: float = 1.1) -> None:
        self._window = window
        self._width = log(width)
        self._means: dict[int, list[float]] = {}
        """By neighbourhood: count, seconds, how many measurements."""
        self._points: tuple[list[float], list[float]] = ([], [])

    def observe(self, count: int, seconds: float) -> None:
        """Something of `count` > 0 took so long."""
        mean = self._means.setdefault(round(log(count) / self._width), [count, seconds, 0.0])
        if mean[2] == 1:
            # the first of its kind often pays for memory and compilation
            mean[1] = min(mean[1], seconds)
        mean[2] = min(mean[2] + 1, self._window)
        limited = min(seconds, 4 * mean[1])
        mean[0] += (count - mean[0]) / mean[2]
        mean[1] += (limited - mean[1]) / mean[2]
        counts, values, weights = zip(*sorted(map(tuple, self._means.values())), strict=True)
        self._points = (list(counts), rising(values, weights))

    @property
    def largest(self) -> float:
        """The largest count measured; 0 before the first."""
        return self._points[0][-1] if self._points[0] else 0.0

    @property
    def smallest(self) -> float:
        """The smallest count measured; 0 before the first."""
        return self._points[0][0] if self._points[0] else 0.0

    def seconds(self, count: float) -> float:
        """Expected for `count`; only after something was measured.

        Beyond the largest measured the last line goes on; after one measurement seconds are proportional to count.
        """
        counts, seconds = self._points
        assert counts, "nothing was measured"
        place = bisect_left(counts, count)
        if place == 0:
            return seconds[0]
        if len(counts) == 1:
            return seconds[0] * count / counts[0]
        place = min(place, len(counts) - 1)
        share = (count - counts[place - 1]) / (counts[place] - counts[place - 1])
        return seconds[place - 1] + share * (seconds[place] - seconds[place - 1])


class AcceptanceByRank:
    """How likely the b-th child of a node that is accepted is the next that is.

    Starts from a guess that counts as `weight` observations, and forgets: what is older than `window` observations
    of a child matters little, and without observations the guess slowly returns.
    """

    def __init__(
        self, guess: Sequence[float], weight: float = 4, window: float = 300, steps: float = 3000
    ) -> None:
        self._guess = guess
        self._weight = weight
        self._kept = 1 - 1 / window
        self._kept_per_step = 1 - 1 / steps
        self._tried = [0.0] * len(guess)
        self._accepted = [0.0] * len(guess)

    def observe(self, children: int, accepted: int | None) -> None:
        """A node that was accepted had so many children; which of them was, if any."""
        for rank in range(min(children, len(self._guess))):
            self._tried[rank] = self._tried[rank] * self._kept + 1
            self._accepted[rank] = self._accepted[rank] * self._kept + (rank == accepted)

    def age(self) -> None:
        """A step has passed."""
        self._tried = [tried * self._kept_per_step for tried in self._tried]
        self._accepted = [accepted * self._kept_per_step for accepted in self._accepted]

    def chances(self) -> tuple[float, ...]:
        """By rank, not rising."""
        weights = [tried + self._weight for tried in self._tried]
        rates = [
            (accepted + guess * self._weight) / weight
            for accepted, guess, weight in zip(self._accepted, self._guess, weights, strict=True)
        ]
        return tuple(-value for value in rising([-rate for rate in rates], weights))


def rising(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The nearest values that do not fall, by weighted squares: falling neighbours are pooled in their mean."""
    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        pool = (value, weight, 1)
        while pools and pools[-1][0] > pool[0]:
            mean, mass, count = pools.pop()
            total = mass + pool[1]
            pool = ((mean * mass + pool[0] * pool[1]) / total, total, count + pool[2])
        pools.append(pool)
    return [value for value, _, count in pools for _ in range(count)]
