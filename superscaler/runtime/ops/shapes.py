"""Shape changes that torch tells by numbers of the whole where a piece needs its own."""

from collections.abc import Sequence

from torch import Tensor


def repeat(x: Tensor, shape: Sequence[int]) -> Tensor:
    """`x` side by side with itself until it fills `shape`, as ``x.repeat`` does; each dim is a multiple."""
    known = (1,) * (len(shape) - x.dim()) + tuple(x.shape)
    return x.repeat([size // own for size, own in zip(shape, known, strict=True)])


def as_strided(x: Tensor, size: Sequence[int], stride: Sequence[int], offset: int = 0) -> Tensor:
    """As ``torch.as_strided`` on the elements of `x` in row-major order, however `x` lies in memory."""
    return x.contiguous().as_strided(size, stride, offset)


def as_strided_scatter(
    x: Tensor, source: Tensor, size: Sequence[int], stride: Sequence[int], offset: int = 0
) -> Tensor:
    """`x` with `source` in the place of ``as_strided(x, size, stride, offset)``."""
    return x.contiguous().as_strided_scatter(source, size, stride, offset)
