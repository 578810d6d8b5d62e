"""Simulation: the same scheduler and policies on a clock that jumps from step to step; no model, no waiting.

For studies at a scale, or of a policy, that no machine at hand can run. Deterministic: equal requests give equal times.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import inf

from superscaler.runtime.serving.batch import Batch
from superscaler.runtime.serving.kv_cache import KvCache
from superscaler.runtime.serving.limits import Limits
from superscaler.runtime.serving.policies import Policy
from superscaler.runtime.serving.request import Request
from superscaler.runtime.serving.scheduler import Scheduler
from superscaler.runtime.serving.step import Sampled

_TOKEN = 0
"""What every sequence is given; nobody looks at it but the prefix cache."""


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds of a step, as a sum: for a model whose weights are read once, and a cache that is read for its keys."""

    fixed: float
    """Of any step: weights that are read, kernels that are started."""
    per_token: float
    """Of a token that goes through the model."""
    per_key: float = 0.0
    """Of a key that a sequence sees."""

    def __call__(self, batch: Batch) -> float:
        """Seconds of a batch."""
        return self.fixed + self.per_token * len(batch.tokens) + self.per_key * sum(batch.lengths)


@dataclass(frozen=True, slots=True)
class Served:
    """When a request was given what; seconds on the simulated clock."""

    request: Request
    first_token: float
    finished: float
    cached: int
    """Tokens of its prompt that were in the cache."""
    preemptions: int

    @property
    def time_to_first_token(self) -> float:
        """Seconds from its arrival."""
        return self.first_token - self.request.arrival

    @property
    def time_per_token(self) -> float:
        """Seconds between tokens after the first, on average; 0 where there is no other."""
        others = (self.request.params.max_tokens or 1) - 1
        return (self.finished - self.first_token) / others if others else 0.0


class _Clock:
    """Stands still but when it is put forward."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def simulate(
    requests: Iterable[Request],
    cache: KvCache,
    policy: Policy,
    limits: Limits,
    seconds: Callable[[Batch], float],
) -> list[Served]:
    """Serve requests as they arrive, each until it has its `max_tokens`; in the order in which they finish.

    Args:
        requests: Of one continuation each, with `max_tokens`: how long its answer is.
        cache: Whose pages sequences get; none of them are taken at the end.
        policy: Ranks them.
        limits: Bound a step.
        seconds: What a step takes.

    Raises:
        RequestError: One could never be served.
    """
    clock = _Clock()
    scheduler = Scheduler(cache, policy, limits, clock)
    coming = sorted(map(_plain, requests), key=lambda request: request.arrival)[::-1]
    first: dict[str, float] = {}
    served: list[Served] = []
    while coming or scheduler.running or scheduler.waiting:
        while coming and coming[-1].arrival <= clock.now:
            scheduler.add(coming.pop())
        step = scheduler.schedule()
        if step is None:
            clock.now = coming[-1].arrival if coming else inf
            continue
        clock.now += seconds(step.batch)
        for sequence in scheduler.update(step, [Sampled((_TOKEN,))] * len(step.samples)):
            begun = first.setdefault(sequence.id, clock.now)
            if sequence.finish_reason is not None:
                del first[sequence.id]
                served.append(
                    Served(sequence.request, begun, clock.now, sequence.cached or 0, sequence.preemptions)
                )
    return served


def _plain(request: Request) -> Request:
    """The request, once it is clear that it says how long its answer is."""
    params = request.params
    assert params.n == 1, "a simulated request has one continuation"
    assert params.max_tokens is not None, "a simulated request says how long its answer is"
    return request if params.ignore_eos else replace(request, params=replace(params, ignore_eos=True))
