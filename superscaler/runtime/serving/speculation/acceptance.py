"""Which speculated tokens stay, such that the output is distributed as if the model had drawn every token itself.

One rule, `next_tokens`, serves each node. Write p for the model's distribution of the next token, and let the
speculators have made attempts 1, ..., k there, in an order that does not depend on what was drawn; attempt i drew
the token x_i from the distribution q_i. With p_1 = p:

* attempt i is accepted with probability min(1, p_i(x_i) / q_i(x_i));
* if it is not, p_{i+1} = norm(max(0, p_i - q_i)) takes the place of p_i;
* after the last one the token is drawn from p_{k+1}; if a child of the node has it, that child is accepted.

*Why the output has distribution p.* Attempt i outputs x with probability q_i(x) min(1, p_i(x) / q_i(x))
= min(q_i(x), p_i(x)), and fails with probability 1 - sum min(q_i, p_i) = sum max(0, p_i - q_i) =: r. Suppose what
follows a failure has distribution p_{i+1}, whatever x_i was; this holds after the last attempt, by definition.
Then x comes out with probability min(q_i, p_i)(x) + r p_{i+1}(x) = min(q_i, p_i)(x) + max(0, p_i - q_i)(x) = p_i(x).
So it holds for i, and by induction for i = 1, where p_1 = p. A whole path follows from its tokens, one by one:
attempts below a child are drawn given the path only, and know nothing of the numbers that decided above.
(SpecInfer, arXiv 2305.09781, section 4.3 and theorem 4.2, where one draw per speculator is meant.)

The proof asks two things: q_i is the distribution that x_i was *really* drawn from, given x_1, ..., x_{i-1}, and
every attempt that was made is tried. Each scheme is a case:

* *Independent draws, and several speculators:* q_i is the distribution of the speculator whose attempt it is. A
  token drawn twice has two attempts; counting it once tries fewer attempts than were made, and which ones are
  left out depends on their values, so it is wrong.
* *Draws without replacement:* after x_1, ..., x_{i-1} the next token comes from q without these, renormalised;
  that is q_i, so q is zeroed at a rejected token and renormalised, and attempts go in draw order (Sequoia,
  arXiv 2402.12374). The residual p_{i+1} does depend on x_1, ..., x_{i-1}, as q_i does, but not on x_i, which is
  all that the induction uses. Trying q itself, or another order, is wrong.
* *Not drawn at all* (the k likeliest tokens, or what followed in the text before): there is no attempt, only the
  last step: draw from p, and see whether a child has it. The output is p since it was drawn from p. Judging such
  a token by the speculator's probability for it is wrong: q_i would be 1 at the token.
* *Greedy:* p is 1 at its likeliest token; the last step needs no number then, nor p.

How many attempts are made may depend on what was drawn so far (a failure leads to p_{i+1} whatever follows), but
not whether one that was made is kept.

Where p_i and q_i are equal an attempt cannot fail, except by rounding; the residual is zero everywhere then,
and p_i itself is kept. A q_i(x_i) that rounded to zero accepts if p_i(x_i) is above zero, as the quotient's limit
does, and p_i(x_i) = 0 is never accepted. All of it is computed in float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from superscaler.runtime.serving.sampling import Row, draw, uniforms


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """What one speculator drew, a node per row."""

    tokens: Tensor
    """int64 [rows, draws] in draw order, repeated as often as drawn; -1 behind the last of a row."""
    probabilities: Tensor
    """[rows, vocab], as the first was drawn from: after temperature and filters."""
    replacement: Tensor
    """bool [rows], whether a token could be drawn again; if not, each is from what the earlier ones left."""


class Chance(Protocol):
    """Where decisions come from: random numbers, or an enumeration of all that may happen."""

    def happens(self, probability: Tensor) -> Tensor:
        """Decide something of this probability [rows], for each: bool [rows]."""
        ...

    def pick(self, weights: Tensor) -> Tensor:
        """Choose a token in proportion to `weights` [rows, vocab], for each: int64 [rows]."""
        ...


class RowChance:
    """Decides by the random numbers of each row's position.

    `pick` uses the number that `sample` would: where nothing was drawn, the token is the one that comes without
    speculation, so that a seed gives the same text whether tokens were speculated or not.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self._used: Tensor | int = 0

    def happens(self, probability: Tensor) -> Tensor:
        """Decide something of this probability [rows], for each: bool [rows]."""
        # counted by row, lest a row's numbers depend on how many attempts others have
        self._used = (probability > 0).long() + self._used
        return uniforms(self._rows, "acceptance", self._used) < probability

    def pick(self, weights: Tensor) -> Tensor:
        """Choose a token in proportion to `weights` [rows, vocab], for each: int64 [rows]."""
        return draw(weights, uniforms(self._rows, "token"))


def next_tokens(targets: Tensor, attempts: Sequence[Draws], chance: Chance) -> Tensor:
    """The token after each of some nodes, with the distributions `targets` whatever was drawn; see the module.

    Args:
        targets: [rows, vocab], the model's distribution at each node.
        attempts: What was drawn there, one entry per speculator. Tokens proposed without a draw are not mentioned:
            the result may be one of them.

    Returns:
        int64 [rows].
    """
    model = targets.to(torch.float64)
    accepted = torch.full(targets.shape[:1], -1, dtype=torch.int64, device=targets.device)
    for draws in attempts:
        draft = draws.probabilities.to(torch.float64)
        for token in draws.tokens.unbind(-1):
            tried = (token >= 0) & (accepted < 0)
            column = token.clamp(min=0).unsqueeze(-1)
            probability = _acceptance(model.gather(-1, column), draft.gather(-1, column)).squeeze(-1)
            happened = chance.happens(probability.where(tried, 0.0))
            accepted = torch.where(happened, token, accepted)
            rejected = (tried & ~happened).unsqueeze(-1)
            model = torch.where(rejected, _residual(model, draft), model)
            once = rejected & ~draws.replacement.unsqueeze(-1)
            draft = torch.where(once, _normalised(draft.scatter(-1, column, 0.0)), draft)
    if bool((accepted >= 0).all()):
        return accepted
    return torch.where(accepted < 0, chance.pick(model), accepted)


def _acceptance(have: Tensor, drawn: Tensor) -> Tensor:
    """min(1, have / drawn), where `drawn` may have rounded to zero."""
    return torch.where(have >= drawn, (have > 0).to(have.dtype), have / drawn)


def _residual(model: Tensor, draft: Tensor) -> Tensor:
    left = (model - draft).clamp_(min=0)
    return torch.where(left.sum(-1, keepdim=True) > 0, _normalised(left), model)


def _normalised(weights: Tensor) -> Tensor:
    """Each row divided by its sum; a row of zeros, from which nothing can be drawn, stays."""
    total = weights.sum(-1, keepdim=True)
    return weights / total.where(total > 0, 1.0)
