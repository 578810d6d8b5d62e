"""Requests and the sequences that answer them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from superscaler.errors import RequestError
from superscaler.runtime.serving.sampling_params import SamplingParams

FinishReason = Literal["stop", "length", "abort", "error"]


class State(StrEnum):
    """Where a sequence is."""

    WAITING = "waiting"
    """Nothing of it is in the cache."""
    RUNNING = "running"
    """It holds pages on the device, and takes part in steps."""
    SWAPPED = "swapped"
    """It holds pages on the host."""
    FINISHED = "finished"
    """It holds none, and gets no more tokens."""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to be continued."""

    id: str
    """Of the engine's choice; no two requests that are served at once share one."""
    prompt: tuple[int, ...]
    """Token ids; at least one."""
    params: SamplingParams = field(default_factory=SamplingParams)
    priority: int = 0
    """Lower goes first, where the policy looks at it."""
    arrival: float = 0.0
    """Seconds on the engine's clock."""
    workflow: str | None = None
    """The graph of calls of a user's program that it belongs to."""
    deadline: float | None = None
    """Seconds on the engine's clock after which the answer is worth less."""
    cache_salt: str = ""
    """Requests share the keys and values of equal prefixes only where their salts are equal."""
    answered: int = 0
    """How many of the prompt's last tokens are the answer's first already, which its grammar must take."""

    def __post_init__(self) -> None:
        if not self.prompt:
            raise RequestError(
                f"the prompt of request {self.id} has no tokens", remedy="begin it with a token"
            )


@dataclass(eq=False, slots=True)
class Sequence:
    """One of the continuations of a request; the scheduler changes it, everybody else reads it."""

    request: Request
    index: int
    """Which of the request's n continuations."""
    most_tokens: int
    """It ends, at the latest, with so many tokens, prompt included."""
    tokens: list[int] = field(init=False)
    """Prompt and what was generated."""
    generated: list[int] = field(init=False, default_factory=list)
    """The tokens after the prompt; a list of its own, so that a step that looks at it copies nothing."""
    computed: int = 0
    """How many of the tokens have their keys and values in the cache."""
    state: State = State.WAITING
    finish_reason: FinishReason | None = None
    cached: int | None = None
    """Tokens of the prompt that were found in the cache when it first ran; None: it has not run yet."""
    preemptions: int = 0
    """How often it had to make room for others."""

    id: str = field(init=False)
    """Unique among the sequences that are served at once."""

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt)
        self.id = f"{self.request.id}/{self.index}"

    @property
    def uncomputed(self) -> int:
        """Tokens that must still go through the model before the next one is known; 1 when decoding."""
        return len(self.tokens) - self.computed

    @property
    def room(self) -> int:
        """Most tokens that it may still generate."""
        return self.most_tokens - len(self.tokens)

    def extend(self, tokens: Iterable[int], end_tokens: frozenset[int]) -> FinishReason | None:
        """Take generated tokens, up to the one that ends it, if one does; return why it ends.

        Args:
            tokens: At least one, in order.
            end_tokens: Those with which the model itself ends a text.
        """
        params = self.request.params
        stops = params.stop_token_ids if params.ignore_eos else params.stop_token_ids | end_tokens
        for token in tokens:
            self.tokens.append(token)
            self.generated.append(token)
            if token in stops and len(self.generated) >= params.min_tokens:
                return "stop"
            if not self.room:
                return "length"
        return None
