"""Rows of logits for tests: options with their defaults, as a request has them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from superscaler.runtime.serving.sampling import Row


@dataclass(frozen=True)
class Options:
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_tokens: int = 0
    logprobs: int | None = None


def row(seed=0, prompt=(), output=(), sequence=0, end_tokens=(), **options):
    return Row(Options(**options), seed, prompt, output, sequence=sequence, end_tokens=end_tokens)
