"""Metrics: counters, gauges and histograms for Prometheus, under the names that vLLM has given them."""

import time
from collections.abc import Callable
from itertools import zip_longest

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from superscaler.runtime.serving.output import Load

_TOKEN_SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
)
_FIRST_TOKEN_SECONDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
_REQUEST_SECONDS = (
    0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
)  # fmt: skip
_TOKENS = tuple(float(factor * 10**power) for power in range(6) for factor in (1, 2, 5))


class Metrics:
    """What there is to know of a server, in a registry of its own.

    Args:
        model: The name it is served under, which labels every value.
        clock: Seconds.
    """

    def __init__(self, model: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._registry = CollectorRegistry()
        self._model = model
        self._before = Load(0, 0, 0, 0, 0, 0)
        """As the engine was after the step before."""

        self._running = self._gauge("num_requests_running", "Sequences that hold pages")
        self._waiting = self._gauge("num_requests_waiting", "Sequences for which there is no room yet")
        self._cache_usage = self._gauge("kv_cache_usage_perc", "Part of the pages that is used, from 0 to 1")
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts")
        self._generation_tokens = self._counter("generation_tokens", "Tokens generated")
        self._cache_queries = self._counter(
            "prefix_cache_queries", "Tokens of prompts looked for in the cache"
        )
        self._cache_hits = self._counter("prefix_cache_hits", "Tokens of prompts found in the cache")
        self._preemptions = self._counter("num_preemptions", "How often a sequence had to make room")
        self._success = Counter(
            "vllm:request_success", "Sequences that ended, by reason", ("model_name", "finished_reason"),
            registry=self._registry,
        )  # fmt: skip
        self._drafts = self._counter("spec_decode_num_drafts", "Token trees drafted")
        self._draft_tokens = self._counter("spec_decode_num_draft_tokens", "Tokens drafted")
        self._accepted_tokens = self._counter("spec_decode_num_accepted_tokens", "Drafted tokens accepted")
        self._accepted_by_level = Counter(
            "vllm:spec_decode_num_accepted_tokens_per_pos",
            "Drafted tokens accepted, by their level in the tree, from 0", ("model_name", "position"),
            registry=self._registry,
        )  # fmt: skip
        self._first_token = self._histogram(
            "time_to_first_token_seconds", "From a request's coming to its first token", _FIRST_TOKEN_SECONDS
        )
        self._queue = self._histogram(
            "request_queue_time_seconds", "From a request's coming to its first step", _REQUEST_SECONDS
        )
        self._prefill = self._histogram(
            "request_prefill_time_seconds", "From a request's first step to its first token", _REQUEST_SECONDS
        )
        self._between_tokens = self._histogram(
            "inter_token_latency_seconds", "From a sequence's token to its next", _TOKEN_SECONDS
        )
        self._per_token = self._histogram(
            "request_time_per_output_token_seconds", "Mean time of a sequence's tokens after its first",
            _TOKEN_SECONDS,
        )  # fmt: skip
        self._request_seconds = self._histogram(
            "e2e_request_latency_seconds",
            "From a request's coming to the end of a sequence",
            _REQUEST_SECONDS,
        )
        self._request_prompt = self._histogram("request_prompt_tokens", "Tokens of a prompt", _TOKENS)
        self._request_generation = self._histogram(
            "request_generation_tokens", "Tokens of a sequence generated", _TOKENS
        )
        self._step_tokens = self._histogram(
            "iteration_tokens_total", "Tokens that went through the model in a step", _TOKENS
        )

    def observe_load(self, load: Load) -> None:
        """Take in how busy the engine is after a step."""
        before, self._before = self._before, load
        self._running.set(load.running)
        self._waiting.set(load.waiting)
        self._cache_usage.set(load.pages_used / load.pages if load.pages else 0.0)
        if load.step_tokens:
            self._step_tokens.observe(load.step_tokens)
        for counter, now, then in (
            (self._preemptions, load.preemptions, before.preemptions),
            (self._drafts, load.drafts, before.drafts),
            (self._draft_tokens, load.draft_tokens, before.draft_tokens),
            (self._accepted_tokens, load.accepted_tokens, before.accepted_tokens),
        ):
            counter.inc(_growth(now, then))
        levels = zip_longest(load.accepted_by_level, before.accepted_by_level, fillvalue=0)
        for level, (now, then) in enumerate(levels):
            self._accepted_by_level.labels(self._model, str(level)).inc(_growth(now, then))

    def request(self, prompt_tokens: int) -> "RequestMetrics":
        """What is to be told of a request that has come now."""
        self._prompt_tokens.inc(prompt_tokens)
        self._request_prompt.observe(prompt_tokens)
        return RequestMetrics(self, prompt_tokens)

    def text(self) -> bytes:
        """All of them as Prometheus reads them."""
        return generate_latest(self._registry)

    def _gauge(self, name: str, what: str) -> Gauge:
        return Gauge(f"vllm:{name}", what, ("model_name",), registry=self._registry).labels(self._model)

    def _counter(self, name: str, what: str) -> Counter:
        return Counter(f"vllm:{name}", what, ("model_name",), registry=self._registry).labels(self._model)

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(f"vllm:{name}", what, ("model_name",), buckets=buckets, registry=self._registry)
        return histogram.labels(self._model)

    # -- of a request

    def _began(self, seconds: float, queued: float, prompt_tokens: int, cached: int) -> None:
        self._first_token.observe(seconds)
        self._queue.observe(queued)
        self._prefill.observe(max(0.0, seconds - queued))
        self._cache_queries.inc(prompt_tokens)
        self._cache_hits.inc(cached)

    def _ended(self, tokens: int, reason: str, seconds: float, since_first: float) -> None:
        self._success.labels(self._model, reason).inc()
        self._request_seconds.observe(seconds)
        self._request_generation.observe(tokens)
        if tokens > 1:
            self._per_token.observe(since_first / (tokens - 1))


def _growth(now: int, then: int) -> int:
    """How much a count of the engine has grown; one that was started anew counts from 0."""
    return now - then if now >= then else now


class RequestMetrics:
    """Watches one request.

    Args:
        metrics: Where it is told.
        prompt_tokens: Tokens of its prompt.
    """

    def __init__(self, metrics: Metrics, prompt_tokens: int) -> None:
        self._metrics, self._prompt_tokens = metrics, prompt_tokens
        self._came = metrics.clock()
        self._seen: dict[int, tuple[int, float, float]] = {}
        """Of each sequence: its tokens, when the first came and when the last."""

    def observe(self, index: int, new: int, cached: int, queued: float) -> None:
        """Take in what a step gave.

        Args:
            index: Which sequence.
            new: How many tokens it got.
            cached: Tokens of the prompt that were in the cache.
            queued: Seconds until the request's first step.
        """
        metrics, now = self._metrics, self._metrics.clock()
        if not new:
            return
        if not self._seen:
            metrics._began(now - self._came, queued, self._prompt_tokens, cached)
        count, first, last = self._seen.get(index, (0, now, now))
        if count:  # tokens that come together share the time
            for _ in range(new):
                metrics._between_tokens.observe((now - last) / new)
        metrics._generation_tokens.inc(new)
        self._seen[index] = (count + new, first, now)

    def end(self, index: int, reason: str) -> None:
        """A sequence has ended."""
        now = self._metrics.clock()
        count, first, last = self._seen.get(index, (0, now, now))
        self._metrics._ended(count, reason, now - self._came, last - first)
