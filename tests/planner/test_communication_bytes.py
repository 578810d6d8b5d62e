"""What every classic plan sends per device is what the textbook formula says of the model's sizes."""

import pytest

from benchmarks.communication_bytes import PLANS, QUICK, row

CASES = [(title, model, 2) for title, (_, _, models) in PLANS.items() for model in models]
CASES += [(title, PLANS[title][2][-1], 4) for title in PLANS]


@pytest.mark.parametrize(("title", "model", "devices"), CASES)
def test_bytes_per_device_are_those_of_the_formula(title, model, devices):
    sizes = {**QUICK[model], "layers": 4} if title == "pipeline" else QUICK[model]
    found = row(title, model, sizes, devices)
    assert found["equal"], found
