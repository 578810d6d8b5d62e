"""Provenance: for every traced operator, the user's module, line and call, forward and backward.

While a model is traced, a `Provenance` notes each call of the torch API: in which module, from which line.
The note goes to every operator the call leads to, and, through the autograd nodes the call leaves behind, to
every operator of its backward.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.fx.traceback as fx_traceback
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from superscaler.ir.source_line import user_line
from superscaler.ir.whole import Capture


class Provenance(TorchFunctionMode):
    """Notes call, module and line; maps calls of whole operators onto them."""

    def __init__(self, capture: Capture) -> None:
        super().__init__()
        self.capture = capture
        self.calls = 0
        self.modules: list[str] = [""]
        self.last_source = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the call, run it (as a whole operator where there is one), mark its autograd nodes."""
        kwargs = kwargs or {}
        self.calls += 1
        self.last_source = user_line() or self.last_source
        note = {"call": self.calls, "module": self.modules[-1], "source": self.last_source, "phase": "F"}
        with fx_traceback.preserve_node_meta():
            _set_note(note)
            replacement = self.capture.table.get(func)
            result = replacement(*args, **kwargs) if replacement else NotImplemented
            if result is NotImplemented:
                result = func(*args, **kwargs)
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.grad_fn is not None:
                _mark(leaf.grad_fn, note)
        return result

    @contextmanager
    def watching(self, model: torch.nn.Module) -> Iterator[None]:
        """Keep track of which submodule of `model` is running."""
        handles = []
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(self._enter(name)))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: Any) -> None:
            self.modules.append(name)

        return hook

    def _leave(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        self.modules.pop()


def note_of(meta: dict[str, Any]) -> dict[str, Any]:
    """The note left in an FX node's metadata; empty where there is none."""
    return meta.get("custom") or {}


@contextmanager
def noting(note: dict[str, Any]) -> Iterator[None]:
    """Give `note` to every operator traced inside."""
    with fx_traceback.preserve_node_meta():
        _set_note(note)
        yield


def _set_note(note: dict[str, Any]) -> None:
    fx_traceback.current_meta["custom"] = note


def _mark(node: Any, note: dict[str, Any]) -> None:
    """Give `note` to the autograd nodes one call left, down to those of earlier calls."""
    backward = {**note, "phase": "B"}
    pending = [node]
    while pending:
        node = pending.pop()
        if node is None or "superscaler" in node.metadata or node.name().endswith("AccumulateGrad"):
            continue
        node.metadata["superscaler"] = note["call"]
        node.register_prehook(lambda gradients: _set_note(backward))
        pending.extend(following for following, _ in node.next_functions)
