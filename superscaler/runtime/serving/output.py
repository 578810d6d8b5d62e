"""Output: what a step gave a sequence, and how busy the engine is."""

from dataclasses import dataclass

from superscaler.runtime.serving.request import FinishReason
from superscaler.runtime.serving.sampling import Logprobs


@dataclass(frozen=True, slots=True)
class Output:
    """What a step gave one sequence."""

    request_id: str
    index: int
    """Which of the request's n continuations."""
    tokens: tuple[int, ...]
    """New ones; none where a sequence ends for another reason than its tokens."""
    logprobs: tuple[Logprobs | None, ...] = ()
    """Of each new token; None where the request does not ask."""
    finish_reason: FinishReason | None = None
    """Why the sequence has ended with these, if it has."""
    cached: int = 0
    """Tokens of the prompt whose keys and values were there before the request came."""
    queued: float = 0.0
    """Seconds from the request's coming to the first step that it had a part in."""
    by_end_token: bool = False
    """Whether it has ended because the last of the tokens is one that ends texts, and is no part of them."""


@dataclass(frozen=True, slots=True)
class Load:
    """How busy the engine is."""

    running: int
    """Sequences that hold pages."""
    waiting: int
    """Sequences for which there is no room yet."""
    pages: int
    pages_used: int
    step_tokens: int
    """Tokens that went through the model in the last step."""
    preemptions: int
    """How often a sequence had to make room, since the engine began; as all below."""
    drafts: int = 0
    """Trees that were drafted."""
    draft_tokens: int = 0
    """Their nodes."""
    accepted_tokens: int = 0
    """Nodes that were accepted."""
    accepted_by_level: tuple[int, ...] = ()
    """Of these, how many at each level of their trees, the root's children first."""
