"""Autocast: how a trace follows ``torch.autocast``.

torch itself casts what ATen operators read while the model is traced; whole operators, which torch does not know, are
cast here, by the same lists: those of the device type ``cpu``, wherever the program runs later. Linear layers,
matrix products, convolutions and attention compute in the lower precision; cross entropy and the squared error in
float32; normalisation, softmax, embeddings and dropout in the type they are given. Casts are operators of the graph.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from superscaler.errors import TraceError

DTYPES = ("bfloat16", "float16")


def autocast(dtype: str) -> AbstractContextManager[Any]:
    """The context a forward pass is traced, or run eagerly, in; none for an empty name.

    Raises:
        TraceError: The name is of no lower precision.
    """
    if not dtype:
        return nullcontext()
    if dtype not in DTYPES:
        raise TraceError(f"autocast to {dtype!r}", remedy=f"use {' or '.join(DTYPES)}")
    return torch.autocast("cpu", getattr(torch, dtype), cache_enabled=True)


class WholeAutocast:
    """Casts what whole operators read, where autocast is on; a parameter is cast once, as torch's cache has it."""

    def __init__(self) -> None:
        self._casts: dict[int, tuple[Tensor, Tensor]] = {}

    def lower(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, computing in the lower precision."""
        return self._casting(function, lambda value: self._to(value, torch.get_autocast_dtype("cpu")))

    def single(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, computing in float32."""
        return self._casting(function, lambda value: self._to(value, torch.float32))

    def _casting(self, function: Callable[..., Any], cast: Callable[[Any], Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*arguments: Any, **keywords: Any) -> Any:
            if torch.is_autocast_enabled("cpu"):
                arguments, keywords = pytree.tree_map(cast, (arguments, keywords))
            return function(*arguments, **keywords)

        return call

    def _to(self, value: Any, dtype: torch.dtype) -> Any:
        is_cast = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
        if not is_cast or value.dtype == dtype:
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.to(dtype)
        if id(value) not in self._casts:
            self._casts[id(value)] = value, value.to(dtype)
        return self._casts[id(value)][1]
