"""The order of samples is a permutation per epoch, known from its numbers alone."""

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from superscaler.runtime.data.order import Order, shuffled, wrap_runs

COUNTS = st.integers(1, 300)
SEEDS = st.integers(-(2**40), 2**40)


def rows_of(runs):
    return [row for start, stop in runs for row in range(start, stop)]


@settings(deadline=None)
@given(COUNTS, SEEDS, st.integers(0, 1000))
def test_shuffling_is_a_bijection(count, seed, epoch):
    result = shuffled(torch.arange(count), count, seed, epoch)
    assert sorted(result.tolist()) == list(range(count))


@settings(deadline=None)
@given(st.integers(1, 2**50), st.data())
def test_shuffling_stays_inside_a_data_set_of_any_size(count, data):
    numbers = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=20, unique=True))
    result = shuffled(torch.tensor(numbers), count, 5, 0).tolist()
    assert len(set(result)) == len(numbers)
    assert all(0 <= row < count for row in result)


@settings(deadline=None)
@given(COUNTS, st.one_of(st.none(), SEEDS), st.integers(1, 40), st.integers(0, 60))
def test_any_batch_is_a_slice_of_the_epochs_one_after_another(count, seed, batch, step):
    order = Order(count, seed)
    epochs = range(step * batch // count, (step + 1) * batch // count + 1)
    whole = [row for epoch in epochs for row in rows_of(order.rows([(epoch * count, (epoch + 1) * count)]))]
    assert all(sorted(whole[k * count : (k + 1) * count]) == list(range(count)) for k in range(len(epochs)))
    first = step * batch - epochs[0] * count
    assert rows_of(order.rows([(step * batch, (step + 1) * batch)])) == whole[first : first + batch]


@settings(deadline=None)
@given(COUNTS, SEEDS, st.lists(st.tuples(st.integers(0, 500), st.integers(0, 9)), max_size=5))
def test_a_part_of_a_batch_has_the_rows_it_has_in_the_whole(count, seed, parts):
    runs = [(start, start + length) for start, length in parts]
    order = Order(count, seed)
    whole = rows_of(order.rows([(0, 520)]))
    assert rows_of(order.rows(runs)) == [whole[number] for number in rows_of(runs)]


def test_epochs_and_seeds_differ():
    def order(seed, epoch):
        return tuple(shuffled(torch.arange(50), 50, seed, epoch).tolist())

    assert len({order(seed, epoch) for seed in range(5) for epoch in range(5)}) == 25
    assert order(3, 2) == order(3, 2)


@pytest.mark.parametrize("count", [3, 4, 5])
def test_all_permutations_are_equally_likely(count):
    draws = 40 * torch.arange(count + 1)[1:].prod().item()
    found = Counter(tuple(shuffled(torch.arange(count), count, seed, 0).tolist()) for seed in range(draws))
    permutations = list(itertools.permutations(range(count)))
    freedom = len(permutations) - 1
    statistic = sum((found[one] - 40) ** 2 / 40 for one in permutations)
    # a chi-square has this mean and variance; the seeds are fixed, so the outcome is too
    assert abs(statistic - freedom) < 4 * (2 * freedom) ** 0.5


@settings(deadline=None)
@given(st.integers(1, 12), st.lists(st.tuples(st.integers(0, 100), st.integers(0, 30)), max_size=4))
def test_wrapped_runs_are_the_numbers_modulo_the_count(count, parts):
    runs = [(start, start + length) for start, length in parts]
    assert rows_of(wrap_runs(runs, count)) == [number % count for number in rows_of(runs)]
