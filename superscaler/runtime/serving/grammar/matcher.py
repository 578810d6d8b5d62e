"""Matcher: where a sequence is in its grammar, and what that does to its logits.

The engine keeps one for each sequence, on its first rank, where tokens are chosen. Who looks ahead, down a token
tree, does so with copies.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from superscaler.runtime.serving.grammar.grammar import Grammar


class Matcher(Protocol):
    """A place in a grammar, which moves on as tokens are taken."""

    @property
    def is_over(self) -> bool:
        """Whether nothing may follow: an end token was taken, or no other could be."""
        ...

    @property
    def is_complete(self) -> bool:
        """Whether what was taken, but for an end token, is a text of the grammar."""
        ...

    def allowed(self) -> Tensor:
        """The tokens that may follow, as bits: uint8 [vocab / 8, rounded up], token t in bit t % 8 of byte t // 8.

        End tokens are among them where the text may end. At least one bit is set unless it `is_over`.
        """
        ...

    def take(self, token: int) -> None:
        """Move on by a token that is allowed."""
        ...

    def copy(self) -> "Matcher":
        """Another at the same place, which moves on by itself."""
        ...


class Grammars(Protocol):
    """What knows the texts of tokens, and so can match them with grammars."""

    def begin(self, grammar: Grammar, end_tokens: Iterable[int]) -> Matcher:
        """The place before the first token.

        Args:
            grammar: What the tokens' texts must be together.
            end_tokens: Those that end a sequence: allowed wherever the text may end.

        Raises:
            RequestError: The grammar makes no sense, or no token can begin any of its texts.
        """
        ...


def masked(scores: Tensor, matchers: Sequence[Matcher]) -> Tensor:
    """Logits [rows, vocab] with minus infinity for all tokens that a row's matcher does not allow."""
    packed = torch.stack([matcher.allowed() for matcher in matchers]).to(scores.device)
    places = torch.arange(8, dtype=torch.uint8, device=scores.device)
    bits = (packed.unsqueeze(-1) >> places) & 1
    return scores.masked_fill(bits.flatten(1)[:, : scores.shape[-1]] == 0, -torch.inf)
