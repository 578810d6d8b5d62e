"""Which token tree to speculate with, if any, for the batch at hand: the one with the most tokens per second.

What decides is measured while serving: how often the first, second, ... child is accepted, the seconds of a step
by the number of its tokens, and of drafting by the number of levels, both by the size of the batch. A chain is the
best tree where first children are nearly always accepted; nothing is best where the device is busy as it is.

What speculation may lose is bounded by an *allowance* of seconds, not by how good the estimates are. A step that
speculates is compared with what its tokens would have taken without; the difference is added to the allowance, and
every step adds a small share of its own time. A tree is used only if the allowance can bear that none of its nodes
is accepted. So the engine is later than without speculation by at most that share of the time, and a fixed start;
and it still tries now and then where speculation does not pay, which is how a change for the better is noticed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from superscaler.runtime.serving.speculation.best_trees import best_trees
from superscaler.runtime.serving.speculation.measured import AcceptanceByRank, Curve
from superscaler.runtime.serving.speculation.token_tree import ROOT, depths
from superscaler.runtime.serving.speculation.token_tree import ranks as children_in_order

_trees = lru_cache(maxsize=256)(best_trees)
_HELD_UP = 4
"""A step that takes so many times what its like take was held up by something else."""
_HOPE = 1.05
"""How many times as good a tree must promise to be to be tried."""
_MOST_USES = 4
"""Steps for which a choice holds while nothing else changes."""


@dataclass(frozen=True, slots=True)
class SpeculationStep:
    """What a step did."""

    batch: int
    """Sequences that decoded."""
    other_tokens: int
    """Tokens of prompts that went through the model beside them."""
    trees: Sequence[tuple[Sequence[int], Sequence[int]]]
    """For each sequence with a proposal, the parents of its tree and the nodes that were accepted."""
    seconds: float
    """Of the whole step but drafting."""
    draft_seconds: float = 0.0
    ranks: Sequence[Sequence[int]] = ()
    """For each tree, which choice of a speculator each node is; empty: nodes are choices in the order of siblings."""


class TreeChoice:
    """Chooses the shape of the trees of the next step."""

    def __init__(
        self,
        levels: int = 8,
        size: int = 64,
        guess: Sequence[float] = (0.6, 0.15, 0.07, 0.04),
        share: float = 0.01,
        start_steps: float = 10,
        saved_steps: float = 200,
        plain_every: int = 100,
        try_every: int = 20,
        speculators: int = 1,
    ) -> None:
        """Nothing is measured yet.

        Args:
            levels: Most levels of a tree.
            size: Most nodes of a tree.
            guess: Of the acceptance of each child, before there are observations.
            share: Of all time that may be lost to trying what does not pay.
            start_steps: What may be lost besides, in steps without speculation.
            saved_steps: Most that is saved up of what was gained, likewise, for when luck is bad.
            plain_every: How many steps may speculate before one does not, to measure what that takes.
            try_every: How many steps are between two tries of what may not pay, after the first ones.
            speculators: Whose trees of the chosen shape are merged: at worst, they have no node in common.
        """
        self._levels, self._size, self._speculators = levels, max(1, size // speculators), speculators
        self._share, self._start_steps, self._saved_steps = share, start_steps, saved_steps
        self._plain_every, self._try_every = plain_every, try_every
        self._acceptance = AcceptanceByRank(guess, window=100)
        self._costs: dict[int, _Costs] = {}
        self._allowance: float | None = None
        """Seconds that may be lost; None before the first step."""

    def choose(self, batch: int, other_tokens: int = 0) -> tuple[int, ...]:
        """The parents of each sequence's tree; empty: do not speculate.

        Args:
            batch: Sequences that will decode, one at least.
            other_tokens: Tokens of prompts that go through the model beside them.
        """
        costs = self._costs.get(batch.bit_length())
        if costs is None or costs.speculated_steps >= self._plain_every:
            return ()
        assert self._allowance is not None, "costs are known only after a step"
        best = costs.best
        # the first tries follow each other: from the larger trees among them it is seen whether one pays
        tries = costs.steps >= min(self._try_every, costs.tries)
        if best is not None and best.gain <= 0 and not tries:
            return ()
        # choosing takes time too: what was found holds for a few steps
        if best is None or not best.holds(batch, other_tokens, self._allowance):
            best = costs.best = self._best(costs, batch, other_tokens)
        best.uses += 1
        if tries and (best.hoped or best.gain <= 0):
            costs.tried()
            return best.hoped or best.shape
        return best.shape if best.gain > 0 else ()

    def observe(self, step: SpeculationStep) -> None:
        """Learn from a step in which one sequence decoded at least."""
        nodes = sum(len(parents) for parents, _ in step.trees)
        tokens = step.batch + step.other_tokens
        costs = self._costs.setdefault(step.batch.bit_length(), _Costs())
        costs.verifying.observe(tokens + nodes, step.seconds)
        plain, alone = self._seconds(costs, tokens), self._seconds(costs, step.batch)
        start = self._start_steps * alone
        if self._allowance is None:
            self._allowance = start
        self._allowance += self._share * (step.seconds + step.draft_seconds) - step.draft_seconds
        if nodes:
            costs.speculated(
                max(max(depths(parents), default=0) for parents, _ in step.trees), step.draft_seconds
            )
            accepted = sum(len(path) for _, path in step.trees)
            worth = plain + accepted / step.batch * alone
            # what takes far longer than its like was held up by something else, as a plain step might have been
            self._allowance += worth - min(step.seconds, _HELD_UP * costs.verifying.seconds(tokens + nodes))
        else:
            costs.did_not_speculate()
        # nor is one disaster paid for ever
        self._allowance = max(-start, min(self._saved_steps * alone, self._allowance))
        for number, (parents, path) in enumerate(step.trees):
            self._learn(parents, path, step.ranks[number] if step.ranks else children_in_order(parents))
        self._acceptance.age()

    def _best(self, costs: "_Costs", batch: int, other_tokens: int) -> "_Best":
        """The best tree that the allowance bears."""
        assert self._allowance is not None, "costs are known only after a step"
        tokens = batch + other_tokens
        # at most twice the tokens and levels of what was measured: further out costs are a guess
        room = min(self._size, int(2 * costs.verifying.largest - tokens) // (batch * self._speculators))
        levels = min(self._levels, 2 * costs.known_levels + 1)
        alone, plain = self._seconds(costs, batch), self._seconds(costs, tokens)
        nodes = range(self._speculators, (room + 1) * self._speculators, self._speculators)
        verifying = [costs.verifying.seconds(tokens + batch * count) - plain for count in nodes]
        drafting = [costs.draft_seconds(level, alone) for level in range(levels + 1)]
        chances = tuple(round(chance, 2) for chance in self._acceptance.chances())
        most = min(
            self._size, 1 << max(0, room - 1).bit_length()
        )  # few different ones, so that they are found again
        # how little it might be, where it is not known: what was measured nearest
        least_more = costs.verifying.seconds(costs.verifying.largest) - plain
        least_draft = [
            costs.draft_seconds(min(level, max(1, costs.known_levels)), alone) for level in range(levels + 1)
        ]
        found, hoped = _Found(), _Found()
        for most_levels in range(1, levels + 1) if room > 0 else ():
            trees = _trees(chances, most_levels, most)
            for size, more in enumerate(verifying[: len(trees.nodes)], 1):
                expected, level = trees.expected[size - 1], trees.levels[size - 1]
                lost = more + drafting[level]
                if lost <= self._allowance:
                    found.take(most_levels, size, expected / (alone + lost), lost)
                    little = min(more, least_more) + least_draft[level]
                    hoped.take(most_levels, size, expected / (alone + little), lost)
        if hoped.rate <= _HOPE * max(found.rate, 1 / alone):
            hoped = _Found()
        shapes = [
            _trees(chances, each.levels, most).shape(each.size) if each.size else ()
            for each in (found, hoped)
        ]
        return _Best(batch, other_tokens, shapes[0], found.rate - 1 / alone, found.lost, shapes[1])

    def _seconds(self, costs: "_Costs", tokens: int) -> float:
        """Of a step with so many tokens, which may be fewer than were ever measured with such a batch.

        Where prompts come all the time, no step is without. Then a batch of another size tells, and if none does,
        seconds are taken to be proportional: less than they are, so that speculation seems no better than it is.
        """
        if tokens >= costs.verifying.smallest:
            return costs.verifying.seconds(tokens)
        curves = [each.verifying for each in self._costs.values()]
        below = [curve for curve in curves if curve.smallest <= tokens]
        if below:
            return max(below, key=lambda curve: curve.smallest).seconds(tokens)
        nearest = min(curves, key=lambda curve: curve.smallest)
        return nearest.seconds(tokens) * tokens / nearest.smallest

    def _learn(self, parents: Sequence[int], path: Sequence[int], ranks: Sequence[int]) -> None:
        """From one tree: at the root and each accepted node, which choice was accepted, if any."""
        choices: dict[int, int] = {}
        for parent, rank in zip(parents, ranks, strict=True):
            choices[parent] = max(choices.get(parent, 0), rank + 1)
        for node, accepted in zip((ROOT, *path), (*path, None), strict=True):
            if node in choices:
                self._acceptance.observe(choices[node], None if accepted is None else ranks[accepted])


@dataclass(slots=True)
class _Best:
    """What was found to be the best tree, and for what."""

    batch: int
    other_tokens: int
    shape: tuple[int, ...]
    """Empty where the allowance bears none."""
    gain: float
    """How many tokens per second it gives a sequence more than no tree."""
    lost: float
    """Seconds, if none of its nodes is accepted."""
    hoped: tuple[int, ...]
    """One that would be better by far if it took as little as smaller ones do, which is not known; empty: none."""
    uses: int = 0

    def holds(self, batch: int, other_tokens: int, allowance: float) -> bool:
        """Whether it need not be looked for again."""
        same = (self.batch, self.other_tokens) == (batch, other_tokens)
        return same and self.uses < _MOST_USES and bool(self.shape) and self.lost <= allowance


@dataclass(slots=True)
class _Found:
    """The best so far."""

    levels: int = 0
    size: int = 0
    rate: float = 0.0
    lost: float = 0.0

    def take(self, levels: int, size: int, rate: float, lost: float) -> None:
        """Have a look at another."""
        if rate > self.rate:
            self.levels, self.size, self.rate, self.lost = levels, size, rate, lost


class _Costs:
    """What steps take with batches of about one size."""

    def __init__(self) -> None:
        self.verifying = Curve()
        """By the tokens of the step."""
        self.best: _Best | None = None
        """As last found."""
        self.tries = 0
        """Steps with trees that may not pay."""
        self.steps = 0
        """Since the last such."""
        self.speculated_steps = 0
        """Since one that did not."""
        self._drafting = Curve()
        """By levels."""

    @property
    def known_levels(self) -> int:
        """The most levels that were drafted."""
        return round(self._drafting.largest)

    def speculated(self, levels: int, draft_seconds: float) -> None:
        """A step did, with trees of so many levels."""
        self._drafting.observe(levels, draft_seconds)
        self.speculated_steps += 1
        self.steps += 1

    def did_not_speculate(self) -> None:
        """A step gave each sequence one token."""
        self.speculated_steps = 0
        self.steps += 1

    def tried(self) -> None:
        """A tree is chosen that may not pay."""
        self.tries, self.steps, self.best = self.tries + 1, 0, None

    def draft_seconds(self, levels: int, step_seconds: float) -> float:
        """Expected; before there is a measurement, a share of a step without speculation."""
        if levels == 0:
            return 0.0
        return self._drafting.seconds(levels) if self.known_levels else levels * step_seconds / 2
