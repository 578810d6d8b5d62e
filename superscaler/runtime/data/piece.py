"""Piece: what one rank reads of one input for one micro-batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from superscaler.runtime.stored_tensor import Runs


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of samples and of what lies in each."""

    input: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    """Of the input in a whole step, its first dim counting samples; () for a value without samples."""
    runs: tuple[Runs, ...]
    """Per dim, the indices to read; those of the first dim are samples, and need not ascend."""

    @property
    def samples(self) -> list[int]:
        """The samples to read, in order; a sample may come twice."""
        return [sample for start, stop in self.runs[0] for sample in range(start, stop)] if self.runs else []


def cut(x: Tensor, runs: tuple[Runs, ...]) -> Tensor:
    """The elements of `x` at `runs`, per dim; a view where each dim has one run."""
    for dim, intervals in enumerate(runs):
        if len(intervals) == 1:
            start, stop = intervals[0]
            x = x.narrow(dim, start, stop - start)
            continue
        indices = [index for start, stop in intervals for index in range(start, stop)]
        x = x.index_select(dim, torch.tensor(indices, dtype=torch.int64, device=x.device))
    return x
