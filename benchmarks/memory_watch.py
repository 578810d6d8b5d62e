"""Memory watch: how many bytes of tensors live at once, in this process, by counting the storage of each."""

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class MemoryWatch(TorchDispatchMode):
    """Counts each storage from the operator that makes it until it is freed; scratch memory of kernels is not seen.

    On a CUDA device the allocator counts instead.

    Args:
        held: Tensors that are there already.
        device: Where the program runs.
    """

    def __init__(self, held: Any, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self._live: dict[StorageWeakRef, int] = {}
        self._most = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._see(held)

    @property
    def most_bytes(self) -> int:
        """The most there were at once."""
        return torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else self._most

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count what it made."""
        result = func(*args, **(kwargs or {}))
        self._see(result)
        return result

    def _see(self, tensors: Any) -> None:
        self._live = {reference: size for reference, size in self._live.items() if not reference.expired()}
        for leaf in pytree.tree_leaves(tensors):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                self._live.setdefault(StorageWeakRef(storage), storage.nbytes())
        self._most = max(self._most, sum(self._live.values()))
