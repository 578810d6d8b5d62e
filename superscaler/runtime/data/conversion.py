"""Values as tensors of the type a model was compiled for: whole numbers, where none can change, and nothing else."""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def is_lossless(source: torch.dtype, target: torch.dtype) -> bool:
    """Whether each value of one type is a value of the other: the same type, or whole numbers of a wider range.

    >>> is_lossless(torch.uint16, torch.int64), is_lossless(torch.int64, torch.int32)
    (True, False)
    """
    if source == target:
        return True
    if not _is_whole(source) or not _is_whole(target):
        return False
    inner, outer = torch.iinfo(source), torch.iinfo(target)
    return outer.min <= inner.min and inner.max <= outer.max


def as_tensor(value: Any, dtype: torch.dtype) -> Tensor:
    """A tensor, array, number or nested list as a tensor on the CPU, of type `dtype` where nothing is lost.

    Numbers of Python have no type: they become `dtype` if each is one, and floating-point ones are rounded to it.
    Where something would be lost the tensor has another type.

    Raises:
        ValueError: It is none of these, or lists of different lengths.
        TypeError: Likewise.
    """
    if isinstance(value, Tensor):
        x = value.detach().cpu()
        return x.to(dtype) if is_lossless(x.dtype, dtype) else x
    x = tensor_of(np.asarray(value))
    if isinstance(value, np.ndarray | np.generic):
        return x.to(dtype) if is_lossless(x.dtype, dtype) else x
    if x.is_floating_point():
        return x.to(dtype) if dtype.is_floating_point else x
    converted = x.to(dtype)
    return converted if torch.equal(converted.to(x.dtype), x) else x


def tensor_of(array: np.ndarray) -> Tensor:
    """A copy of an array, whatever its byte order and whether or not it may be written to."""
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


def _is_whole(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)
