"""Simulated steps beside published measurements: `benchmarks.validate_simulator` does all of them."""

import pytest

from benchmarks.published_prices import prices_of
from benchmarks.published_training import read_rows
from benchmarks.validate_simulator import spearman
from superscaler.simulator.simulation import simulate

ROWS = {row.id: row for row in read_rows()}


def test_megatrons_smallest_model_is_as_fast_as_published():
    row = ROWS["m21-1.7b"]
    plan = row.planned()
    simulation = simulate(plan, plan.programs, prices_of(row, plan, plan.cluster))
    assert row.value_of(simulation.step_seconds, 0) == pytest.approx(row.value, rel=0.15)


def test_the_flops_of_published_models_are_those_of_their_parameters():
    row = ROWS["l3-405b-8k"]
    assert row.model_flops == pytest.approx(6 * 405e9 * row.tokens, rel=0.1)
    old = ROWS["m21-1t"]
    assert old.megatron_flops == pytest.approx(8 * 1008e9 * old.tokens, rel=0.05)


def test_ranks_of_equal_values_are_shared():
    assert spearman([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
    assert spearman([1, 2, 3], [30, 20, 10]) == pytest.approx(-1)
    assert spearman([1, 2, 3], [5, 5, 5]) == 0
    assert spearman([1, 1, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.9486832980505138)
