"""Pieces of a parameter are initialised as pieces of the whole, with the distribution the steps ask for."""

import pytest
import torch

from superscaler.errors import BuildError
from superscaler.ir.tensor import Region
from superscaler.runtime.initialise import initialise

CPU = torch.device("cpu")
TRUNCATED = [["uniform_", -0.9, 0.9], ["erfinv_"], ["mul_", 0.5], ["add_", 1.0], ["clamp_", 0.2, 1.8]]


def whole_region(*sizes):
    return Region(tuple((0, size) for size in sizes))


@pytest.mark.parametrize(
    "steps", [[["normal_", 0.0, 0.02]], [["uniform_", -0.1, 0.1]], TRUNCATED, [["fill_", 2.0]]]
)
def test_pieces_equal_the_whole(steps):
    sizes = (3, 8, 16, 50)
    whole = initialise(steps, whole_region(*sizes), sizes, (3 * 8 * 16, 50), torch.float32, CPU, 1, "qkv")
    region = Region(((0, 3), (2, 4), (0, 16), (10, 30)))
    piece = initialise(steps, region, sizes, (3 * 2 * 16, 20), torch.float32, CPU, 1, "qkv")
    assert torch.equal(piece, whole.view(sizes)[:, 2:4, :, 10:30].reshape(96, 20))


def test_normal_numbers_are_normal():
    values = initialise(
        [["normal_", 1.0, 2.0]], whole_region(10**6), (10**6,), (10**6,), torch.float64, CPU, 0, "w"
    )
    z = (values - 1) / 2
    assert abs(z.mean()) < 0.005
    assert abs(z.var() - 1) < 0.01
    assert abs((z**4).mean() - 3) < 0.05
    below = [(z < x).double().mean().item() for x in (-2.0, -1.0, 0.0, 1.0, 2.0)]
    assert below == pytest.approx([0.02275, 0.15866, 0.5, 0.84134, 0.97725], abs=0.002)


def test_steps_follow_one_another():
    values = initialise(TRUNCATED, whole_region(1000), (1000,), (1000,), torch.float64, CPU, 0, "w")
    start = initialise(TRUNCATED[:1], whole_region(1000), (1000,), (1000,), torch.float64, CPU, 0, "w")
    torch.testing.assert_close(values, start.erfinv().mul(0.5).add(1).clamp(0.2, 1.8))


def test_seeds_and_names_draw_apart():
    draws = [
        initialise([["normal_"]], whole_region(50), (50,), (50,), torch.float32, CPU, seed, name)
        for seed, name in ((0, "a"), (1, "a"), (0, "b"))
    ]
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_a_scalar_is_initialised():
    assert initialise([["ones_"]], Region(()), (), (), torch.float32, CPU, 0, "scale").item() == 1.0


@pytest.mark.parametrize("steps", [[], [["mul_", 2.0]], [["normal_"], ["cumsum_", 0]]])
def test_steps_that_are_not_understood_are_refused(steps):
    with pytest.raises(BuildError, match="'w'"):
        initialise(steps, whole_region(3), (3,), (3,), torch.float32, CPU, 0, "w")
