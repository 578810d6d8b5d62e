"""The part of a batch that one rank reads: the pieces of all its phases and micro-batches together.

A phase that comes before the micro-batches may read more than they do, such as the targets that count for all.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from superscaler.runtime.stored_tensor import Runs, StoredTensor


@dataclass(frozen=True, slots=True)
class OwnPart:
    """What one rank reads of one input in a whole step."""

    runs: tuple[Runs, ...]
    """Per dim, the indices of the whole batch that are in the part, ascending."""
    pieces: Mapping[str, tuple[tuple[Runs, ...], ...]]
    """Stored tensor -> per micro-batch and dim, the indices of its piece, counted within the part."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements per dim."""
        return tuple(sum(stop - start for start, stop in runs) for runs in self.runs)


def own_parts(inputs: Iterable[StoredTensor], rank: int, micro_batches: int) -> dict[str, OwnPart]:
    """Per input its smallest part, per dim, that has all pieces `rank` reads of it.

    Args:
        inputs: Those of the rank's program, each as often as phases have it.
        rank: Whose parts.
        micro_batches: Of a step.
    """
    by_source: dict[str, list[StoredTensor]] = {}
    for tensor in inputs:
        by_source.setdefault(tensor.source, []).append(tensor)
    return {name: _part(tensors, rank, micro_batches) for name, tensors in by_source.items()}


def _part(tensors: Sequence[StoredTensor], rank: int, micro_batches: int) -> OwnPart:
    read = {one.name: [one.runs(rank, number) for number in range(micro_batches)] for one in tensors}
    boxes = [box for of_tensor in read.values() for box in of_tensor]
    runs = tuple(_joined([run for of_box in of_dim for run in of_box]) for of_dim in zip(*boxes, strict=True))
    pieces = {
        name: tuple(tuple(_within(*pair) for pair in zip(box, runs, strict=True)) for box in of_tensor)
        for name, of_tensor in read.items()
    }
    return OwnPart(runs, pieces)


def _joined(runs: Sequence[tuple[int, int]]) -> Runs:
    """All indices of these runs, each once."""
    joined: Runs = []
    for start, stop in sorted(runs):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined


def _within(runs: Runs, whole: Runs) -> Runs:
    """Where `runs` lie if only the indices of `whole` are counted.

    >>> _within([(4, 6), (12, 14)], [(0, 2), (4, 6), (10, 14)])
    [(2, 4), (6, 8)]
    """
    found, counted, remaining = [], 0, iter(runs)
    run = next(remaining, None)
    for start, stop in whole:
        while run is not None and run[1] <= stop:
            found.append((counted + run[0] - start, counted + run[1] - start))
            run = next(remaining, None)
        counted += stop - start
    return found
