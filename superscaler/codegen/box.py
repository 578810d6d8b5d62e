"""Box: where the elements lie that an operator draws random numbers for, among all there are."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from superscaler.codegen.program import Offset
from superscaler.ir.layout import Extent, Layout


def box_within(
    outer: Mapping[str, Any], layout: Layout, starts: Sequence[Offset], local: Sequence[Extent]
) -> dict[str, list[Any]]:
    """The keywords ``starts``, ``local`` and ``whole`` of a device's piece.

    The operator may itself be for one of several pieces of a tensor that run one after another: then `outer` tells
    where they lie, with a dim of one element that numbers the pieces.
    """
    sizes = list(layout.sizes)
    box: dict[str, list[Any]] = {"starts": [], "local": [], "whole": []}
    position = 0
    for start, size, whole in zip(*(outer.get(key, ()) for key in box), strict=True):
        if size == 1 != whole:
            for key, value in zip(box, (start, size, whole), strict=True):
                box[key].append(value)
            continue
        first, position = position, _dims_of(sizes, position, size)
        for key, values in zip(box, (starts, local, sizes), strict=True):
            box[key] += values[first:position]
    for key, values in zip(box, (starts, local, sizes), strict=True):
        box[key] += values[position:]
    return box


def _dims_of(sizes: Sequence[int], position: int, size: int) -> int:
    """Behind which fine dim a dim of `size` elements ends, that begins at one."""
    end = position
    while prod(sizes[position:end]) != size:
        end += 1
    return end
