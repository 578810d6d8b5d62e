"""The order of samples: as they lie, or shuffled anew in each epoch, found from a sample's number alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

from superscaler.runtime.random import hash_bits, seed_of
from superscaler.runtime.stored_tensor import Runs

_ROUNDS = 6
"""Each mixes both halves of a number into the other; with fewer, some permutations of five samples are rare."""


@dataclass(frozen=True, slots=True)
class Order:
    """Which sample is number 0, 1, 2, ... of a training run that sees the data set again and again."""

    samples: int
    """How many there are; at least 1."""
    seed: int | None = None
    """Of the shuffle; None: as they lie."""

    def rows(self, numbers: Runs) -> Runs:
        """The samples with these numbers, in order."""
        if self.seed is None:
            return wrap_runs(numbers, self.samples)
        if not numbers:
            return []
        flat = torch.cat([torch.arange(start, stop) for start, stop in numbers])
        epochs = flat // self.samples
        rows = torch.empty_like(flat)
        for epoch in epochs.unique().tolist():
            here = epochs == epoch
            rows[here] = shuffled(flat[here] - epoch * self.samples, self.samples, self.seed, epoch)
        return [(row, row + 1) for row in rows.tolist()]


def wrap_runs(runs: Runs, count: int) -> Runs:
    """Runs of rows numbered without end, as runs of the `count` rows there are.

    >>> wrap_runs([(6, 11)], 8)
    [(6, 8), (0, 3)]
    """
    wrapped = []
    for start, stop in runs:
        while start < stop:
            row = start % count
            length = min(stop - start, count - row)
            wrapped.append((row, row + length))
            start += length
    return wrapped


def shuffled(numbers: Tensor, count: int, seed: int, epoch: int) -> Tensor:
    """Where a permutation of 0 to `count` - 1, drawn by (seed, epoch), takes `numbers` (int64).

    A Feistel network permutes the smallest power of two that holds `count`; what falls outside is permuted
    again until it falls inside (cycle walking: Black and Rogaway, CT-RSA 2002), less than twice on average.
    No table is made, so a data set may have any number of samples.
    """
    bits = (count - 1).bit_length()
    result = _feistel(numbers, bits, seed, epoch)
    while (outside := result >= count).any():
        result[outside] = _feistel(result[outside], bits, seed, epoch)
    return result


def _feistel(numbers: Tensor, bits: int, seed: int, epoch: int) -> Tensor:
    """Permute the numbers of `bits` bits: either half is changed by a hash of the other, in turn."""
    low_bits = (bits + 1) // 2
    low_mask, high_mask = (1 << low_bits) - 1, (1 << (bits - low_bits)) - 1
    low, high = numbers & low_mask, numbers >> low_bits
    for number in range(_ROUNDS):
        low = low ^ (hash_bits(seed_of(seed, f"order/{epoch}/{number}/low"), high) & low_mask)
        high = high ^ (hash_bits(seed_of(seed, f"order/{epoch}/{number}/high"), low) & high_mask)
    return (high << low_bits) | low
