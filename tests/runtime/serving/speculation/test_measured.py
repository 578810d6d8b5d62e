"""What is learnt from noisy steps approaches what produced them, and follows it when it changes."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superscaler.runtime.serving.speculation.measured import AcceptanceByRank, Curve, rising


def test_a_curve_follows_steps_of_any_form():
    def true(count):
        return max(1.0, count / 50) + 0.01 * count

    generator, curve = random.Random(1), Curve()
    for _ in range(3000):
        count = generator.randint(1, 200)
        curve.observe(count, true(count) * generator.uniform(0.9, 1.1))
    for count in (1, 3, 10, 40, 60, 100, 190):
        assert curve.seconds(count) == pytest.approx(true(count), rel=0.08)


def test_beyond_what_was_measured_the_last_line_goes_on():
    curve = Curve()
    curve.observe(10, 1.0)
    assert curve.seconds(20) == pytest.approx(2.0)
    assert curve.seconds(5) == 1.0
    curve.observe(20, 1.5)
    assert curve.seconds(40) == pytest.approx(2.5)
    assert curve.seconds(15) == pytest.approx(1.25)
    assert curve.largest == 20


def test_a_curve_never_falls_and_forgets():
    curve = Curve()
    curve.observe(10, 3.0)
    curve.observe(20, 1.0)
    assert curve.seconds(10) == curve.seconds(20) == 2.0
    for _ in range(200):
        curve.observe(10, 0.5)
    assert curve.seconds(10) == pytest.approx(0.5, abs=0.01)


def test_a_slow_first_step_and_rare_delays_count_little():
    curve = Curve()
    curve.observe(4, 60.0)
    curve.observe(4, 1.0)
    assert curve.seconds(4) == 1.0
    for number in range(1, 400):
        curve.observe(4, 100.0 if number % 100 == 0 else 1.0)
    assert curve.seconds(4) == pytest.approx(1.0, rel=0.1)


def test_acceptance_is_learnt_by_rank_and_follows_a_change():
    generator, learnt = random.Random(2), AcceptanceByRank((0.5, 0.2, 0.1))
    assert learnt.chances() == (0.5, 0.2, 0.1)
    for true in ((0.8, 0.1, 0.05), (0.3, 0.25, 0.2)):
        for _ in range(2000):
            drawn = generator.choices((0, 1, 2, None), (*true, 1 - sum(true)))[0]
            learnt.observe(3, drawn)
        assert learnt.chances() == pytest.approx(true, abs=0.07)


def test_children_that_were_not_there_say_nothing():
    learnt = AcceptanceByRank((0.5, 0.2))
    for _ in range(100):
        learnt.observe(1, None)
    assert learnt.chances()[0] < 0.05
    assert learnt.chances()[1] <= learnt.chances()[0]
    for _ in range(30_000):
        learnt.age()
    assert learnt.chances() == pytest.approx((0.5, 0.2), abs=0.01)


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(0.1, 3)), min_size=1, max_size=8))
def test_rising_is_the_nearest_that_does_not_fall(pairs):
    values, weights = zip(*pairs, strict=True)
    found = rising(values, weights)
    assert all(first <= second + 1e-12 for first, second in pairwise(found))
    # the min-max formula of isotonic regression
    for place in range(len(values)):
        best = max(
            min(mean(values, weights, start, stop) for stop in range(place, len(values)))
            for start in range(place + 1)
        )
        assert found[place] == pytest.approx(best)


def mean(values, weights, start, stop):
    part = range(start, stop + 1)
    return sum(values[i] * weights[i] for i in part) / sum(weights[i] for i in part)
