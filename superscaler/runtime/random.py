"""A counter-based random generator: the number of an element is all it needs, so every plan draws the same.

The mixer is splitmix64 (Steele, Lea and Flood, OOPSLA 2014), in int64 arithmetic that wraps.
"""

import hashlib
from functools import cache
from math import prod

import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, None))
_CHUNK_ELEMENTS = {"cpu": 32_768}
_LARGE_CHUNK_ELEMENTS = 1 << 22


def uniform(seed: int, key: str | int, indices: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """A number in [0, 1) for each element number in `indices` (int64, any shape), with 53 random bits.

    The same (seed, key, index) always gives the same number; a float32 result has 24 bits.
    """
    bits = hash_bits(seed_of(seed, key), indices)
    digits = 24 if dtype != torch.float64 else 53
    return _shift(bits, 64 - digits).to(torch.float64).mul_(2.0**-digits).to(dtype)


@cache
def seed_of(seed: int, key: str | int) -> int:
    """One 64-bit seed (signed) for the pair."""
    digest = hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def seed_at(key: str | int, step: int | Tensor) -> int | Tensor:
    """A 64-bit seed for each step, in a tensor on the device where the number of the step is in one."""
    if isinstance(step, Tensor):
        return hash_bits(seed_of(0, key), step)
    return int(hash_bits(seed_of(0, key), torch.tensor(step)))


def hash_bits(seed: int | Tensor, indices: Tensor) -> Tensor:
    """64 random bits as an int64 for each of `indices` (int64, any shape)."""
    bits = (indices * _signed(_GAMMA)).add_(seed)
    for shift, factor in _MIX:
        bits ^= _shift(bits, shift)
        if factor is not None:
            bits *= _signed(factor)
    return bits


def element_numbers(
    intervals: tuple[tuple[int, int], ...], whole: tuple[int, ...], flat: slice, device: torch.device
) -> Tensor:
    """Row-major numbers in the `whole` shape of a box's elements number `flat.start` to `flat.stop`.

    `intervals` is the box, half-open per dim; `flat` comes from `row_chunks`, and covers whole rows or a
    part of one row. Returns int64 [flat.stop - flat.start].
    """
    if not whole:
        return torch.zeros(1, dtype=torch.int64, device=device)
    width = intervals[-1][1] - intervals[-1][0]
    first, last = flat.start // width, (flat.stop - 1) // width
    offset, stride = torch.zeros((), dtype=torch.int64, device=device), whole[-1]
    rest = torch.arange(first, last + 1, device=device)
    for (start, stop), size in zip(reversed(intervals[:-1]), reversed(whole[:-1]), strict=True):
        offset = offset + (rest % (stop - start) + start) * stride
        rest, stride = rest // (stop - start), stride * size
    columns = torch.arange(intervals[-1][0], intervals[-1][1], device=device)
    if first == last:
        return columns[flat.start - first * width : flat.stop - first * width] + offset
    return (offset.unsqueeze(-1) + columns).view(-1)


def row_chunks(shape: tuple[int, ...], device: torch.device) -> list[slice]:
    """Slices of the flattened `shape`, each whole rows of the last dim or a part of one, of bounded size."""
    width, count = (shape[-1] if shape else 1), prod(shape)
    if count == 0:
        return []
    limit = _CHUNK_ELEMENTS.get(device.type, _LARGE_CHUNK_ELEMENTS)
    if width <= limit:
        step = limit // width * width
        return [slice(start, min(start + step, count)) for start in range(0, count, step)]
    return [
        slice(row + start, row + min(start + limit, width))
        for row in range(0, count, width)
        for start in range(0, width, limit)
    ]


def _shift(bits: Tensor, places: int) -> Tensor:
    """Logical shift to the right; torch's own keeps the sign."""
    return (bits >> places).bitwise_and_((1 << (64 - places)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
