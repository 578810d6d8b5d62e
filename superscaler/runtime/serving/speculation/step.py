"""One step of speculation: what a speculator is, and which of the proposed tokens the model accepts.

A step: each speculator proposes a tree of tokens for each sequence, the trees are merged, the model computes the
logits after the root and after every node in one pass, and `verify` walks down from the root.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from superscaler.runtime.serving.sampling import Logprobs, Row, logprobs, probabilities, sample
from superscaler.runtime.serving.speculation.acceptance import Chance, Draws, RowChance, next_tokens
from superscaler.runtime.serving.speculation.token_tree import ROOT, TokenTree, merge


@dataclass(frozen=True, slots=True)
class Wish:
    """A sequence to speculate on."""

    sequence: Hashable
    """By which a speculator finds what it knows of the sequence."""
    row: Row
    """What came before, and how its next token is sampled."""
    shape: tuple[int, ...]
    """Parents of the tree that pays (see `token_tree`): a proposal has neither more nodes nor more levels."""


@dataclass(frozen=True, slots=True, eq=False)
class Draft:
    """The distribution from which a speculator drew the tokens after a node."""

    probabilities: Tensor
    """[vocab], as drawn from: after temperature and filters."""
    replacement: bool
    """Whether a token could be drawn again; if not, each is from what the earlier ones left, renormalised."""


@dataclass(frozen=True, slots=True, eq=False)
class Proposal:
    """What may follow a sequence."""

    tree: TokenTree = field(default_factory=TokenTree)
    drafts: Mapping[tuple[int, int], Draft] = field(default_factory=dict)
    """By node (-1: the root) and speculator, where it drew the next tokens at random; elsewhere it did not."""


class Speculator(Protocol):
    """Proposes tokens: a small model, or a look into the text so far."""

    def propose(self, wishes: Sequence[Wish]) -> list[Proposal]:
        """One proposal for each, empty where it has no idea.

        The speculator sees from `row` what was accepted since it was last asked. Random draws use a purpose of
        their own in `sampling.uniforms`, and all draws made are proposed: which are kept may not depend on them.
        """
        ...

    def forget(self, sequence: Hashable) -> None:
        """The sequence has ended, or will go on elsewhere; unknown ones are ignored."""
        ...


@dataclass(frozen=True, slots=True)
class Verified:
    """What a step gives a sequence. The caller cuts it at an end token, stop string or length."""

    tokens: tuple[int, ...]
    """Those of the accepted nodes, and one more that is the model's own."""
    nodes: tuple[int, ...]
    """The accepted nodes, from the first level down."""
    logprobs: tuple[Logprobs | None, ...]
    """Of each token; None where the request does not ask."""


def merged(proposals: Sequence[Proposal]) -> Proposal:
    """The proposals of several speculators for one sequence, as one."""
    tree, places = merge([proposal.tree for proposal in proposals])
    drafts = {
        (ROOT if node == ROOT else place[node], speculator): draft
        for proposal, place in zip(proposals, places, strict=True)
        for (node, speculator), draft in proposal.drafts.items()
    }
    return Proposal(tree, drafts)


def verify(
    logits: Tensor,
    proposals: Sequence[Proposal],
    rows: Sequence[Row],
    chance: Callable[[Sequence[Row]], Chance] = RowChance,
) -> list[Verified]:
    """Accept what the model agrees with; the tokens are distributed as if it had sampled each of them.

    All sequences go down their trees together, a level at a time, so that only nodes that are reached cost
    anything. A sequence whose proposal is empty is sampled as ever.

    Args:
        logits: [sum of (1 + nodes), vocab], for each sequence those after its root, then after its nodes.
        rows: What precedes the logits after each root.
        chance: Decides for rows that are not greedy.
    """
    walks = []
    start = 0
    for proposal, row in zip(proposals, rows, strict=True):
        walks.append(_Walk(proposal, row, start))
        start += 1 + len(proposal.tree)
    assert start == len(logits), f"{len(logits)} rows of logits for {start} roots and nodes"
    while going := [walk for walk in walks if not walk.ended]:
        _step(logits, [walk for walk in going if walk.row.greedy], _likeliest)
        _step(logits, [walk for walk in going if not walk.row.greedy], partial(_drawn, chance=chance))
    return [Verified(tuple(walk.tokens), tuple(walk.nodes), tuple(walk.logprobs)) for walk in walks]


class _Walk:
    """How far down its tree a sequence is."""

    def __init__(self, proposal: Proposal, row: Row, start: int) -> None:
        self.proposal = proposal
        self.row = row
        self.logits_row = start
        self.ended = False
        self.node = ROOT
        self.tokens: list[int] = []
        self.nodes: list[int] = []
        self.logprobs: list[Logprobs | None] = []
        self._start = start

    def take(self, token: int, logprob: Logprobs | None) -> None:
        """Go to the child that has the token, or end."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        node = self.proposal.tree.children[self.node + 1].get(token)
        row = None if node is None else self.row.after(token)
        if node is None or row is None or row.is_over:
            self.ended = True
            return
        self.nodes.append(node)
        self.node, self.logits_row, self.row = node, self._start + 1 + node, row


_Choice = tuple[list[int], list[Logprobs | None]]
"""A token for each of some walks."""


def _step(logits: Tensor, walks: list[_Walk], choose: Callable[[Tensor, list[_Walk]], _Choice]) -> None:
    if walks:
        here = logits[torch.tensor([walk.logits_row for walk in walks], device=logits.device)]
        for walk, token, logprob in zip(walks, *choose(here, walks), strict=True):
            walk.take(token, logprob)


def _likeliest(logits: Tensor, walks: list[_Walk]) -> _Choice:
    sampled = sample(logits, [walk.row for walk in walks])
    return sampled.tokens, sampled.logprobs


def _drawn(logits: Tensor, walks: list[_Walk], chance: Callable[[Sequence[Row]], Chance]) -> _Choice:
    rows = [walk.row for walk in walks]
    tokens = next_tokens(probabilities(logits, rows), _attempts(walks, logits), chance(rows))
    return tokens.tolist(), logprobs(logits, tokens, rows)


def _attempts(walks: list[_Walk], logits: Tensor) -> list[Draws]:
    """What each speculator drew where the walks are; those that proposed without drawing are left out."""
    drawn: dict[int, dict[int, tuple[tuple[int, ...], Draft]]] = {}
    for place, walk in enumerate(walks):
        for speculator, tokens in walk.proposal.tree.draws(walk.node).items():
            draft = walk.proposal.drafts.get((walk.node, speculator))
            if draft is not None:
                drawn.setdefault(speculator, {})[place] = (tokens, draft)
    return [_batched(drawn[speculator], logits) for speculator in sorted(drawn)]


def _batched(drawn: dict[int, tuple[tuple[int, ...], Draft]], logits: Tensor) -> Draws:
    """One speculator's draws by row of `logits`; nothing in the rows that it did not draw for."""
    width = max(len(tokens) for tokens, _ in drawn.values())
    numbers = torch.full((len(logits), width), -1, dtype=torch.int64)
    replacement = torch.ones(len(logits), dtype=torch.bool)
    for place, (tokens, draft) in drawn.items():
        numbers[place, : len(tokens)] = torch.tensor(tokens)
        replacement[place] = draft.replacement
    some = torch.stack([draft.probabilities for _, draft in drawn.values()])
    index = torch.tensor(list(drawn), device=logits.device)
    whole = some.new_zeros(logits.shape).index_copy_(0, index, some)
    return Draws(numbers.to(logits.device), whole, replacement.to(logits.device))
