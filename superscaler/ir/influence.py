"""Influence: which positions along the dims of a result change when one slice of what an operator reads does."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from superscaler.ir.cut_experiment import REDUCERS
from superscaler.ir.letters import Place
from superscaler.ir.rules import Shape
from superscaler.ir.sample_call import SampleCall, redraw


@dataclass(frozen=True)
class Influence:
    """What was seen: slices of the tensors read, and the positions of results that changed with them."""

    shapes: tuple[tuple[Shape, ...], tuple[Shape, ...]]
    """Of what the operator reads and writes."""
    changed: Mapping[tuple[int, int, int, int], torch.Tensor]
    """(read, its dim, written, its dim) -> pairs [n, 2] of a slice and a position that changed with it."""

    def places(self, written: int, at: Place, size: int, read: int) -> list[Place]:
        """Where in a tensor read a letter may lie that lies `at` a place of one written.

        Cutting both there is sound for this result only if no slice changes positions of another piece.
        """
        return [
            place
            for place in places(read, self.shapes[0][read], size)
            if self.is_linked(place, written, at, size)
        ]

    def is_linked(self, place: Place, written: int, at: Place, size: int) -> bool:
        """Whether slices at `place` change positions of the same letter alone, and change any."""
        pairs = self.changed[place.tensor, place.dim, written, at.dim]
        return bool(len(pairs)) and bool(
            (pairs[:, 0] // place.stride % size == pairs[:, 1] // at.stride % size).all()
        )

    def changes(self, place: Place, written: int) -> bool:
        """Whether a result depends on what is read there at all."""
        return any(
            len(self.changed[place.tensor, place.dim, written, dim])
            for dim in range(len(self.shapes[1][written]))
        )


def places(tensor: int, shape: Shape, size: int) -> Iterator[Place]:
    """All places for a letter of `size` elements in a tensor, whole dims first."""
    for dim, whole in enumerate(shape):
        if whole == size:
            yield Place(tensor, dim)
    for dim, whole in enumerate(shape):
        if whole % size == 0 and whole != size:
            for stride in divisors(whole // size):
                yield Place(tensor, dim, stride)


def divisors(number: int) -> list[int]:
    """Divisors, largest first."""
    return [divisor for divisor in range(number, 0, -1) if number % divisor == 0]


def observe(sample: SampleCall, slices: int) -> Influence:
    """Change up to `slices` slices along every dim of what the operator reads, one by one."""
    changed: dict[tuple[int, int, int, int], torch.Tensor] = {}
    reads, writes = sample.shapes
    for read, shape in enumerate(reads):
        for dim, size in enumerate(shape):
            pairs = [_changes(sample, read, dim, index) for index in _spread(size, slices)]
            for written, result in enumerate(writes):
                for other in range(len(result)):
                    changed[read, dim, written, other] = torch.cat([p[written][other] for p in pairs])
    return Influence((reads, writes), changed)


def _spread(size: int, count: int) -> list[int]:
    """Up to `count` indices below `size`, with the first and the last."""
    if size <= count:
        return list(range(size))
    return sorted({index * (size - 1) // (count - 1) for index in range(count)})


def _changes(sample: SampleCall, read: int, dim: int, index: int) -> Sequence[Sequence[torch.Tensor]]:
    """Per result and dim of it: pairs of `index` and a position that changed."""
    values = list(sample.values)
    value = values[read].clone()
    value.select(dim, index).copy_(redraw(value.select(dim, index), index))
    values[read] = value
    found = []
    for before, after in zip(sample.results, sample.run(values), strict=True):
        differs = (before != after) & ~(before.isnan() & after.isnan())
        where = differs.nonzero().cpu()
        found.append([_pairs(index, where[:, other].unique()) for other in range(before.dim())])
    return found


def _pairs(index: int, positions: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.full_like(positions, index), positions], 1)


def do_not_interact(sample: SampleCall, first: Place, second: Place, size: int) -> bool:
    """Whether every result combines, by some reducer, what different pieces of two dims contribute.

    So it is where both lie in a contracted dim: what changes here and there give together, and what none gives,
    combine to the same as what each gives alone. Nothing is cut, so that operators that trust the shapes they are
    given (and would read what is not theirs) are not run on pieces that do not fit each other.
    """
    for one, other in ((0, size - 1), (size // 2, 0)):
        changes = [[], [(first, one), (second, other)], [(first, one)], [(second, other)]]
        runs = [sample.run(_with_changes(sample, change, size)) for change in changes]
        for results in zip(*runs, strict=True):
            if not any(_combine_alike(reduce, results, sample.rounding) for reduce in REDUCERS.values()):
                return False
    return True


def _combine_alike(
    reduce: Callable[[torch.Tensor], torch.Tensor], results: Sequence[torch.Tensor], rounding: float
) -> bool:
    neither, both, left, right = (result.double() for result in results)
    together, alone = reduce(torch.stack([neither, both])), reduce(torch.stack([left, right]))
    scale = max(float(result.abs().max()) for result in (neither, both, left, right))
    return float((together - alone).abs().max()) <= 10 * rounding * scale


def _with_changes(sample: SampleCall, changes: Sequence[tuple[Place, int]], size: int) -> list[torch.Tensor]:
    values = list(sample.values)
    for place, index in changes:
        value = values[place.tensor].clone()
        along = torch.arange(value.shape[place.dim], device=value.device) // place.stride % size == index
        value[(slice(None),) * place.dim + (along,)] = redraw(
            value[(slice(None),) * place.dim + (along,)], index
        )
        values[place.tensor] = value
    return values
