"""Several small tensors in one message, so that latency is paid once."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from superscaler.ir.bucket import JOINED_BYTES


def buckets(xs: Sequence[Tensor]) -> Iterator[list[int]]:
    """Indices of `xs` in groups of one dtype whose tensors travel together."""
    open_buckets: dict[torch.dtype, tuple[list[int], int]] = {}
    for index, x in enumerate(xs):
        limit = JOINED_BYTES[x.device.type]
        if x.nbytes >= limit:
            yield [index]
            continue
        indices, size = open_buckets.get(x.dtype, ([], 0))
        if indices and size + x.nbytes > limit:
            yield indices
            indices, size = [], 0
        open_buckets[x.dtype] = ([*indices, index], size + x.nbytes)
    yield from (indices for indices, _ in open_buckets.values())


def apply_joined(xs: Sequence[Tensor], change: Callable[[Tensor], Tensor]) -> None:
    """Overwrite every tensor by `change` of it, element by element the same as joined in one flat tensor."""
    for indices in buckets(xs):
        if len(indices) == 1:
            overwrite(xs[indices[0]], change)
            continue
        chosen = [xs[index] for index in indices]
        flat = change(torch.cat([x.reshape(-1) for x in chosen]))
        for x, values in zip(chosen, flat.split([x.numel() for x in chosen]), strict=True):
            x.copy_(values.view(x.shape))


def overwrite(x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Let `change` overwrite `x`, through a contiguous copy where `x` is not contiguous itself."""
    if x.is_contiguous():
        return change(x)
    return x.copy_(change(x.contiguous()))


def lead_with_pieces(x: Tensor, dim: int, count: int) -> Tensor:
    """`x` cut into `count` equal pieces along `dim`, the number of the piece as a new first dim."""
    assert x.shape[dim] % count == 0, f"dim {dim} of {list(x.shape)} cannot be cut into {count} equal pieces"
    return x.unflatten(dim, (count, x.shape[dim] // count)).movedim(dim, 0)


def join_pieces(pieces: Tensor, dim: int) -> Tensor:
    """The inverse: pieces along the first dim, joined along `dim`; contiguous."""
    return pieces.movedim(0, dim).flatten(dim, dim + 1).contiguous()


def join_columns(parts: Sequence[Tensor]) -> Tensor:
    """[n, *shape] tensors side by side as one contiguous [n, total]."""
    flat = [part.flatten(1) if part.dim() > 1 else part.unsqueeze(1) for part in parts]
    return flat[0].contiguous() if len(flat) == 1 else torch.cat(flat, dim=1)


def split_columns(flat: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Columns of `flat` [n, total], one group per shape, each as [n, *shape]."""
    parts = flat.split([shape.numel() for shape in shapes], dim=1)
    return [part.reshape(flat.shape[0], *shape) for part, shape in zip(parts, shapes, strict=True)]
