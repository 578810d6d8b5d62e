"""Limits: how much a scheduler may put into a step, how it makes room, and what will never fit."""

from dataclasses import dataclass
from typing import Literal

from superscaler.errors import RequestError, ServingError
from superscaler.runtime.serving.kv_cache import KvCache
from superscaler.runtime.serving.request import Request


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds the steps of an engine.

    Raises:
        ServingError: The limits leave no step that could be run.
    """

    sequence_tokens: int
    """Tokens of the longest sequence the model can hold, prompt included."""
    step_tokens: int = 2048
    """Most tokens in a step."""
    step_sequences: int = 256
    """Most sequences that run at once; each has a token in a step when all decode."""
    chunk_tokens: int | None = None
    """Most tokens of one sequence in a step, so that a long prompt leaves room for others; None: no such bound."""
    watermark: float = 0.01
    """Part of the pages that must be left free after a sequence is admitted: those who run grow into it."""
    preemption: Literal["recompute", "swap"] = "recompute"
    """Whether one that makes room is computed again later, or its pages go to the host while there is room there."""

    def __post_init__(self) -> None:
        for name in ("sequence_tokens", "step_tokens", "step_sequences", "chunk_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ServingError(f"{name} is {value}", remedy="at least 1")
        if self.step_sequences > self.step_tokens:
            raise ServingError(
                f"{self.step_sequences} sequences in a step of {self.step_tokens} tokens: not all could decode",
                remedy="raise step_tokens or lower step_sequences",
            )
        if not 0 <= self.watermark < 1:
            raise ServingError(
                f"watermark is {self.watermark}", remedy="it is a part of the pages, from 0 to below 1"
            )
        if self.preemption not in ("recompute", "swap"):
            raise ServingError(f"preemption is {self.preemption!r}", remedy="choose 'recompute' or 'swap'")


def most_tokens(request: Request, limits: Limits, cache: KvCache) -> int:
    """How long a sequence of the request may become.

    Raises:
        RequestError: Longer than it can become here.
    """
    params = request.params
    prompt = len(request.prompt)
    keys = cache.pages * cache.page_size
    longest = min(limits.sequence_tokens, keys + 1)  # nothing follows the last token: it needs no key
    most = prompt + (params.max_tokens or max(1, longest - prompt))
    if most > limits.sequence_tokens:
        raise RequestError(
            f"request {request.id} has {prompt} tokens and wants up to {most - prompt} more, but a sequence has "
            f"at most {limits.sequence_tokens}",
            remedy="shorten the prompt or lower max_tokens",
        )
    if most > longest:
        raise RequestError(
            f"request {request.id} has {prompt} tokens and wants up to {most - prompt} more: keys for "
            f"{most - 1} in {cache.needed(most - 1)} pages, but the cache has {cache.pages} pages of "
            f"{cache.page_size}",
            remedy="shorten the prompt, lower max_tokens, or give the cache more memory",
        )
    if params.n > limits.step_sequences:
        raise RequestError(
            f"request {request.id} wants {params.n} continuations, but only {limits.step_sequences} sequences "
            "run at once",
            remedy="lower n, or raise step_sequences",
            param="n",
        )
    return most
