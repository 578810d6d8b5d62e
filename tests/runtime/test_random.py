"""The counter-based generator is splitmix64, well distributed, and counts elements as the whole does."""

import torch

from superscaler.runtime.random import element_numbers, hash_bits, row_chunks, uniform

MASK = (1 << 64) - 1


def splitmix64(state):
    z = state & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_bits_are_splitmix64():
    seed = 0x1234_5678_9ABC_DEF0
    indices = [0, 1, 2, 1000, 2**40]
    bits = hash_bits(seed, torch.tensor(indices))
    expected = [splitmix64(seed + i * 0x9E3779B97F4A7C15) for i in indices]
    assert [b & MASK for b in bits.tolist()] == expected


def test_known_first_outputs_of_splitmix64():
    bits = hash_bits(0, torch.tensor([1, 2, 3]))
    assert [b & MASK for b in bits.tolist()] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_uniform_fills_its_interval_evenly():
    values = uniform(0, "weight", torch.arange(1_000_000))
    assert values.min() >= 0
    assert values.max() < 1
    counts = torch.histc(values, 100, 0, 1)
    chi_squared = ((counts - 10_000) ** 2 / 10_000).sum().item()
    assert 50 < chi_squared < 165  # 99 degrees of freedom


def test_neighbours_and_keys_are_uncorrelated():
    numbers = torch.arange(200_000)
    a, b = uniform(0, "a", numbers), uniform(0, "b", numbers)
    columns = torch.stack([a[:-1], a[1:], b[:-1], uniform(1, "a", numbers)[:-1]])
    off_diagonal = torch.corrcoef(columns) - torch.eye(4, dtype=torch.float64)
    assert off_diagonal.abs().max() < 0.01


def test_every_bit_is_fair():
    bits = hash_bits(9, torch.arange(100_000))
    for place in range(64):
        assert abs(((bits >> place) & 1).double().mean().item() - 0.5) < 0.01


def test_float32_numbers_stay_below_one():
    assert uniform(0, "a", torch.arange(1_000_000), torch.float32).max() < 1


def test_element_numbers_are_those_of_the_whole():
    whole = torch.arange(4 * 5 * 6).view(4, 5, 6)
    box = ((1, 3), (0, 4), (2, 5))
    expected = whole[1:3, 0:4, 2:5].reshape(-1)
    cpu = torch.device("cpu")
    assert torch.equal(element_numbers(box, (4, 5, 6), slice(0, 24), cpu), expected)
    assert torch.equal(element_numbers(box, (4, 5, 6), slice(3, 9), cpu), expected[3:9])
    assert element_numbers((), (), slice(0, 1), cpu).tolist() == [0]


def test_chunks_cover_the_shape_in_order():
    for shape in ((), (5,), (3, 100_000), (100_000, 3), (2, 0)):
        chunks = row_chunks(shape, torch.device("cpu"))
        covered = [i for chunk in chunks for i in (chunk.start, chunk.stop)]
        assert covered[1:-1:2] == covered[2::2]
        assert (covered[-1] if covered else 0) == torch.Size(shape).numel()
