"""Calls of ``torch.utils.checkpoint`` inside a model, while it is traced: what runs again is for the plan to say."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import checkpoint

from superscaler.ir.source_line import user_line


@contextmanager
def unrolled_checkpoints() -> Iterator[None]:
    """Let ``checkpoint(function, ...)`` simply call the function, and say so once where there is a backward."""
    lines: list[str] = []

    def note() -> None:
        if torch.is_grad_enabled():
            lines.append(user_line())

    def without_reentrant(*_args: Any, **_kwargs: Any) -> Iterator[None]:
        note()
        yield

    class Reentrant:
        """Stands in for the autograd function of the older implementation."""

        @staticmethod
        def apply(function: Callable[..., Any], _preserve_rng_state: bool, *args: Any) -> Any:
            note()
            return function(*args)

    stand_ins = {
        "_checkpoint_without_reentrant_generator": without_reentrant,
        "CheckpointFunction": Reentrant,
    }
    originals = {name: getattr(checkpoint, name) for name in stand_ins}
    for name, stand_in in stand_ins.items():
        setattr(checkpoint, name, stand_in)
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(checkpoint, name, original)
    if lines:
        warnings.warn(
            f"the model calls torch.utils.checkpoint ({lines[0]}), which is left to the plan: "
            "add `recompute` to it, or p.recompute(selection) to its script",
            stacklevel=2,
        )
