"""Every outcome of a program that makes random decisions, and its exact probability."""

from collections import Counter
from collections.abc import Callable, Hashable

import torch


class EnumeratedChance:
    """Takes the branches it is told, the first of those after them, and remembers which others there were."""

    def __init__(self, path):
        self.path = path
        self.taken = 0
        self.probability = 1.0
        self.others = []

    def branch(self, probabilities: dict):
        """One of the keys."""
        possible = {key: value for key, value in probabilities.items() if value > 0}
        if self.taken == len(self.path):
            first, *others = possible
            self.others += [(*self.path, key) for key in others]
            self.path = (*self.path, first)
        key = self.path[self.taken]
        self.taken += 1
        self.probability *= possible[key]
        return key

    def happens(self, probability):
        """For a batch of one row."""
        value = probability.item()
        return torch.tensor([self.branch({True: value, False: 1 - value})])

    def pick(self, weights):
        """For a batch of one row."""
        return torch.tensor([self.branch(dict(enumerate((weights[0] / weights.sum()).tolist())))])


def distribution(program: Callable[[EnumeratedChance], Hashable]) -> Counter:
    """The probability of each result of `program`, by running it once for every sequence of decisions."""
    found, paths = Counter(), [()]
    while paths:
        chance = EnumeratedChance(paths.pop())
        found[program(chance)] += chance.probability
        paths += chance.others
    return found


def total_variation(found, expected) -> float:
    return sum(abs(found[key] - expected[key]) for key in {*found, *expected}) / 2


def random_distribution(generator, vocab, zeros=0, like=None, closeness=0.6):
    """A distribution with some zeros, in part `like` another."""
    weights = torch.rand(vocab, generator=generator, dtype=torch.float64) ** 2 + 1e-3
    weights /= weights.sum()
    if like is not None:
        weights = closeness * like + (1 - closeness) * weights
    weights[torch.randperm(vocab, generator=generator)[:zeros]] = 0
    return weights / weights.sum()
