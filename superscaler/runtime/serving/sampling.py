"""From logits to tokens, each row by its request's options, and the same whatever else is in the batch.

The order: bias and forbidden ends, penalties, grammar, temperature, `top_k`, `top_p`, `min_p`. Each of the three
filters keeps the tokens down to some probability, ties included, so nothing depends on how a sort orders equals.

A row's random numbers are counted, not drawn from a stream: they follow from the seed, which of the request's
sequences it is, the position and what the number is for. So a request gets the same tokens alone, in any batch,
and again after it was interrupted, as far as its logits are the same.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from superscaler.runtime.random import hash_bits, seed_of, uniform
from superscaler.runtime.serving.grammar.matcher import Matcher, masked
from superscaler.runtime.serving.sampling_params import SamplingParams

GREEDY_BELOW = 1e-5
"""A temperature under which the likeliest token is taken: logits divided by less leave the range of floats."""

_NUCLEUS_WIDTHS = (128, 2048)
"""So many likeliest tokens nearly always hold `top_p` of the mass; only rows where not are sorted further."""


@dataclass(frozen=True, slots=True)
class Row:
    """Whose logits a row holds, and which tokens came before."""

    options: SamplingParams
    seed: int
    """The request's, or the one drawn for it where it has none."""
    prompt: Sequence[int]
    output: Sequence[int] = ()
    path: tuple[int, ...] = ()
    """Tokens after `output` that are not certain: the way down a token tree."""
    sequence: int = 0
    """Which of the request's `n` sequences."""
    end_tokens: tuple[int, ...] = ()
    """Those that would end the sequence; forbidden until it has `min_tokens`."""
    matcher: Matcher | None = None
    """Where `output` and `path` lead to in the sequence's grammar, if it has one."""

    @property
    def position(self) -> int:
        """Of the token that is sampled."""
        return len(self.prompt) + len(self.output) + len(self.path)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.options.temperature < GREEDY_BELOW

    @property
    def is_over(self) -> bool:
        """Whether the grammar lets nothing follow."""
        return self.matcher is not None and self.matcher.is_over

    def certain(self, start: int) -> Sequence[int]:
        """The tokens of prompt and output from number `start` on; the others are not copied."""
        if start < len(self.prompt):
            return [*self.prompt[start:], *self.output]
        return self.output[start - len(self.prompt) :]

    def after(self, token: int) -> "Row":
        """The row one further down a token tree."""
        matcher = self.matcher
        if matcher is not None:
            matcher = matcher.copy()
            matcher.take(token)
        return replace(self, path=(*self.path, token), matcher=matcher)


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Natural logarithms of the model's own probabilities, before any option changed them."""

    chosen: float
    likeliest: tuple[tuple[int, float], ...]
    """Token and logarithm, in falling order."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """One token per row."""

    tokens: list[int]
    logprobs: list[Logprobs | None]
    """None where the request does not ask."""


def sample(logits: Tensor, rows: Sequence[Row]) -> Sampled:
    """Draw the next token of each row.

    Args:
        logits: [rows, vocab], of any float type; they are not changed.

    Raises:
        FloatingPointError: A row holds NaN or infinity, or forbids every token.
    """
    scores = _adjusted(logits, rows)
    chosen = _best(scores)
    drawn = [number for number, row in enumerate(rows) if not row.greedy]
    if drawn:
        index = _index(drawn, scores)
        some = [rows[number] for number in drawn]
        weights = _filtered(_selected(scores, index), some)
        chosen = chosen.index_copy(0, index, draw(weights, uniforms(some, "token")))
    return Sampled(chosen.tolist(), logprobs(logits, chosen, rows))


def probabilities(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """What `sample` draws from: [rows, vocab], each row renormalised over what its filters keep.

    A greedy row is 1 at its likeliest token. Acceptance of speculated tokens needs these of the model and of the
    speculator alike: a draft must be judged by the distribution that it was drawn from.
    """
    scores = _adjusted(logits, rows)
    best = _best(scores)
    result = _filtered(scores, rows)
    greedy = [number for number, row in enumerate(rows) if row.greedy]
    if greedy:
        index = _index(greedy, scores)
        result[index] = 0.0
        result[index, best[index]] = 1.0
    return result


def likeliest(logits: Tensor, rows: Sequence[Row], count: int) -> list[list[int]]:
    """The `count` tokens each row would rather have, the likeliest first: [rows][count], fewer if it may have fewer."""
    scores = _adjusted(logits, rows)
    values, tokens = (part.tolist() for part in scores.topk(min(count, scores.shape[-1])))
    return [
        [token for token, value in zip(*row, strict=True) if value > -math.inf]
        for row in zip(tokens, values, strict=True)
    ]


def draw(weights: Tensor, numbers: Tensor) -> Tensor:
    """The token at which the running sum of `weights` [rows, vocab] first exceeds its share `numbers` [rows] in [0, 1).

    One number per token is all that is used. A token of weight zero is never drawn, even where a device adds in
    another order for each token, so that running sums may fall by a rounding.
    """
    running = weights.cumsum(-1, dtype=torch.float64).masked_fill_(weights <= 0, 0.0)
    share = running.amax(-1, keepdim=True) * numbers.to(weights.device).unsqueeze(-1)
    return (running > share).to(torch.uint8).argmax(-1)


def uniforms(rows: Sequence[Row], purpose: str, number: Tensor | None = None) -> Tensor:
    """A random number in [0, 1) of each row's position for a purpose: float64 [rows].

    Purposes are independent of each other. "token" is what `sample` uses; a speculator's own draws need another,
    or what it proposes would be correlated with what is then accepted.

    Args:
        number: int64 [rows], which of the position's numbers for that purpose; the result is where it is. By default
            number 0, on the host.
    """
    state = torch.tensor([_wrapped(row.seed) for row in rows], dtype=torch.int64)
    for counts in ([row.sequence for row in rows], [row.position for row in rows]):
        state = hash_bits(seed_of(0, "sampling"), state) + torch.tensor(counts, dtype=torch.int64)
    state = hash_bits(seed_of(0, purpose), state)
    return uniform(0, purpose, state if number is None else state.to(number.device) + number)


def logprobs(logits: Tensor, tokens: Tensor, rows: Sequence[Row]) -> list[Logprobs | None]:
    """Of `tokens` [rows] in `logits` [rows, vocab], for the rows that ask."""
    found: list[Logprobs | None] = [None] * len(rows)
    asking = {
        number: row.options.logprobs for number, row in enumerate(rows) if row.options.logprobs is not None
    }
    if not asking:
        return found
    index = _index(list(asking), logits)
    logs = _selected(logits, index).to(_precision(logits)).log_softmax(-1)
    chosen = logs.gather(-1, tokens[index].unsqueeze(-1)).squeeze(-1).tolist()
    values, ids = (part.tolist() for part in logs.topk(min(max(asking.values()), logits.shape[-1])))
    for place, (number, count) in enumerate(asking.items()):
        likeliest = tuple(zip(ids[place][:count], values[place][:count], strict=True))
        found[number] = Logprobs(chosen[place], likeliest)
    return found


def _best(scores: Tensor) -> Tensor:
    """The token with the largest score of each row [rows]; an error where there is none."""
    best, tokens = scores.max(-1)
    faulty = [number for number, sound in enumerate(best.isfinite().tolist()) if not sound]
    if faulty:
        raise FloatingPointError(f"the logits of rows {faulty} are not finite: no token can be chosen")
    return tokens


def _adjusted(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """The logits with what requests add and forbid; the same tensor where none does."""
    scores = logits.to(_precision(logits))
    for adjust, concerns in _ADJUSTMENTS:
        numbers = [number for number, row in enumerate(rows) if concerns(row)]
        if numbers:
            index = _index(numbers, scores)
            changed = adjust(_selected(scores, index), [rows[number] for number in numbers])
            scores = scores.index_copy(0, index, changed)
    return scores


def _biased(scores: Tensor, rows: list[Row]) -> Tensor:
    biased = torch.zeros(scores.shape, dtype=scores.dtype)
    for place, row in enumerate(rows):
        for token, bias in row.options.logit_bias.items():
            if token < scores.shape[-1]:
                biased[place, token] = bias
    return scores + biased.to(scores.device)


def _unended(scores: Tensor, rows: list[Row]) -> Tensor:
    return scores.masked_fill(_counts(scores, [row.end_tokens for row in rows]) > 0, -torch.inf)


def _unrepeated(scores: Tensor, rows: list[Row]) -> Tensor:
    seen = _counts(scores, [(*row.prompt, *row.output, *row.path) for row in rows]) > 0
    penalty = _column(scores, [row.options.repetition_penalty for row in rows])
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def _penalised(scores: Tensor, rows: list[Row]) -> Tensor:
    counts = _counts(scores, [(*row.output, *row.path) for row in rows])
    presence = _column(scores, [row.options.presence_penalty for row in rows])
    frequency = _column(scores, [row.options.frequency_penalty for row in rows])
    return scores - presence * (counts > 0) - frequency * counts


def _held(scores: Tensor, rows: list[Row]) -> Tensor:
    return masked(scores, [row.matcher for row in rows if row.matcher is not None])


_ADJUSTMENTS: tuple[tuple[Callable[[Tensor, list[Row]], Tensor], Callable[[Row], bool]], ...] = (
    (_biased, lambda row: bool(row.options.logit_bias)),
    (_unended, lambda row: bool(row.end_tokens) and len(row.output) + len(row.path) < row.options.min_tokens),
    (_unrepeated, lambda row: row.options.repetition_penalty != 1),
    (_penalised, lambda row: row.options.presence_penalty != 0 or row.options.frequency_penalty != 0),
    (_held, lambda row: row.matcher is not None),
)
"""What is done to logits, and to which rows."""


def _filtered(scores: Tensor, rows: Sequence[Row]) -> Tensor:
    """Probabilities [rows, vocab], 0 where a filter drops them. Rows with the same filter go together."""
    temperature = _column(scores, [1.0 if row.greedy else row.options.temperature for row in rows])
    weights = (scores / temperature).softmax(-1)
    for cut, concerns in _FILTERS:
        numbers = [number for number, row in enumerate(rows) if not row.greedy and concerns(row.options)]
        if numbers:
            index = _index(numbers, weights)
            some = _selected(weights, index)
            least = cut(some, [rows[number].options for number in numbers])
            weights = weights.index_copy(0, index, some.masked_fill(some < least, 0.0))
    # a running sum adds in the same order whatever the number of rows, which a sum may not
    return weights / weights.cumsum(-1, dtype=torch.float64)[:, -1:].to(weights.dtype)


def _least_of_top_k(weights: Tensor, options: list[SamplingParams]) -> Tensor:
    counts = [min(option.top_k, weights.shape[-1]) for option in options]
    values = weights.topk(max(counts)).values
    return values.gather(-1, torch.tensor(counts, device=weights.device).unsqueeze(-1) - 1)


def _least_of_top_p(weights: Tensor, options: list[SamplingParams]) -> Tensor:
    total = weights.cumsum(-1, dtype=torch.float64)[:, -1:]
    shares = torch.tensor([[option.top_p] for option in options], dtype=torch.float64, device=weights.device)
    wanted, open_rows = total * shares, torch.arange(len(options), device=weights.device)
    least = torch.zeros_like(weights[:, :1])
    for width in (*_NUCLEUS_WIDTHS, weights.shape[-1]):
        some = _selected(weights, open_rows)
        values = some.topk(min(width, weights.shape[-1])).values
        running = values.cumsum(-1, dtype=torch.float64)
        needed = running - values < wanted[open_rows]
        needed[:, 0] = True
        least[open_rows] = values.masked_fill(~needed, torch.inf).amin(-1, keepdim=True)
        open_rows = open_rows[running[:, -1] < wanted[open_rows, 0]]
        if not len(open_rows):
            break
    return least


def _least_of_min_p(weights: Tensor, options: list[SamplingParams]) -> Tensor:
    return weights.amax(-1, keepdim=True) * _column(weights, [option.min_p for option in options])


_FILTERS: tuple[
    tuple[Callable[[Tensor, list[SamplingParams]], Tensor], Callable[[SamplingParams], bool]], ...
] = (
    (_least_of_top_k, lambda options: options.top_k > 0),
    (_least_of_top_p, lambda options: options.top_p < 1),
    (_least_of_min_p, lambda options: options.min_p > 0),
)
"""The least weight that each filter keeps [rows, 1], and which rows have it."""


def _counts(scores: Tensor, tokens: Sequence[Sequence[int]]) -> Tensor:
    """How often each token occurs: [rows, vocab]; those that have no logit do not count."""
    places = torch.tensor([place for place, row in enumerate(tokens) for _ in row], dtype=torch.int64)
    numbers = torch.tensor([token for row in tokens for token in row], dtype=torch.int64)
    known = numbers < scores.shape[-1]
    flat = (places * scores.shape[-1] + numbers)[known]
    counts = torch.bincount(flat, minlength=scores.numel()).view(scores.shape)
    return counts.to(scores.device, scores.dtype)


def _column(like: Tensor, values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(-1)


def _index(numbers: list[int], like: Tensor) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device=like.device)


def _selected(values: Tensor, index: Tensor) -> Tensor:
    """The rows `index`, which rise; not copied where they are all."""
    return values if len(index) == len(values) else values.index_select(0, index)


def _precision(logits: Tensor) -> torch.dtype:
    return logits.dtype if logits.dtype == torch.float64 else torch.float32


def _wrapped(seed: int) -> int:
    """An integer of any size as 64 bits with a sign."""
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)
