"""Sampling parameters: how the tokens of a request are drawn, and when there are enough of them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from superscaler.errors import RequestError
from superscaler.runtime.serving.grammar.grammar import Grammar


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a request wants its tokens drawn; the names are those of the OpenAI API, where it has one.

    Raises:
        RequestError: A value makes no sense; the message names it.
    """

    temperature: float = 1.0
    """0: the most probable token is taken."""
    top_k: int = 0
    """Only so many of the most probable tokens are drawn from; 0: all."""
    top_p: float = 1.0
    """Only the most probable tokens that together have this probability are drawn from."""
    min_p: float = 0.0
    """Only tokens at least this probable, relative to the most probable one, are drawn from."""
    presence_penalty: float = 0.0
    """Taken off the logit of each token generated before."""
    frequency_penalty: float = 0.0
    """Taken off the logit of each token for every time it was generated before."""
    repetition_penalty: float = 1.0
    """Positive logits of tokens in the prompt or generated before are divided by it, negative ones multiplied."""
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    """Token id to what is added to its logit."""
    seed: int | None = None
    """With it, the same request gets the same tokens, whatever else is in the batch."""
    n: int = 1
    """How many continuations of the prompt are wanted."""
    max_tokens: int | None = None
    """Most tokens of a continuation; None: as many as the model and the cache have room for."""
    min_tokens: int = 0
    """Before a continuation has so many, nothing stops it."""
    stop: tuple[str, ...] = ()
    """Texts that end a continuation."""
    stop_token_ids: frozenset[int] = frozenset()
    """Tokens that end a continuation; the last of its tokens."""
    ignore_eos: bool = False
    """Whether a continuation goes on after the model's own end token."""
    logprobs: int | None = None
    """For how many of the most probable tokens log probabilities are wanted, besides the one taken; None: for none."""
    grammar: Grammar | None = None
    """The form that a continuation must have; it ends where nothing may follow, also before an end token."""

    def __post_init__(self) -> None:
        for name, (least, most) in _RANGES.items():
            _check_range(name, getattr(self, name), least, most)
        if self.top_p == 0:
            raise RequestError(
                "top_p is 0: no token is left to draw",
                remedy="for the most probable, temperature=0",
                param="top_p",
            )
        if self.repetition_penalty == 0:
            raise RequestError(
                "repetition_penalty is 0: a logit is divided by it",
                remedy="1 is no penalty",
                param="repetition_penalty",
            )
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens is {self.min_tokens}, more than max_tokens, {self.max_tokens}",
                remedy="raise max_tokens or lower min_tokens",
                param="min_tokens",
            )
        if self.temperature == 0 and self.n > 1:
            raise RequestError(
                f"n is {self.n} at temperature 0: every continuation would be the same",
                remedy="raise the temperature, or ask for n=1",
                param="n",
            )
        if self.grammar is not None and self.min_tokens:
            raise RequestError(
                f"min_tokens is {self.min_tokens} where a grammar says when a text may end",
                remedy="leave out min_tokens, and let the grammar ask for more",
                param="min_tokens",
            )
        if isinstance(self.stop, str):
            raise RequestError(f"stop is {self.stop!r}", remedy="it must be a tuple of texts", param="stop")
        if "" in self.stop:
            raise RequestError(
                "stop holds an empty text, which every text contains", remedy="leave it out", param="stop"
            )
        for token in sorted(self.stop_token_ids):
            _check_range("stop_token_ids", token, 0, math.inf)
        for token, bias in self.logit_bias.items():
            _check_range("logit_bias", token, 0, math.inf)
            _check_range(f"logit_bias[{token}]", bias, -100, 100)


_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 100),
    "top_k": (0, math.inf),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "repetition_penalty": (0, 100),
    "n": (1, 1024),
    "max_tokens": (1, math.inf),
    "min_tokens": (0, math.inf),
    "logprobs": (0, math.inf),
}
"""Least and most of each number."""


def _check_range(name: str, value: float | None, least: float, most: float) -> None:
    """Also refuses what is not a number: a comparison with it is false."""
    if value is None or least <= value <= most:
        return
    wanted = f"at least {least}" if most == math.inf else f"from {least} to {most}"
    raise RequestError(f"{name} is {value}", remedy=f"it may be {wanted}", param=name.partition("[")[0])
