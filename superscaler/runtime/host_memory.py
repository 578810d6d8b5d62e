"""Host memory: where a device's values may wait, and how a process keeps what it freed.

On CPUs, freed memory stays with the process, so that the next step need not fault it in again.
"""

import ctypes
import sys
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of the parameters in glibc's ``malloc.h``."""
_LARGEST_MMAP_THRESHOLD = 32 * 2**20
"""The largest glibc takes."""


def keep_freed_memory() -> bool:
    """Tell malloc not to give freed memory back to the system; returns whether this C library has such a switch.

    A training step frees nearly all it allocated, so the top of the heap would be returned after every step, and the
    next one would fault every page in anew: some 40,000 faults, a tenth of the time of a step of 25M parameters.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # setting one of the two ends the automatic choice of both
    is_set = mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD), mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    return is_set == (1, 1)


class HostMoves:
    """Moves between a device and host memory that go on while the device computes: on a GPU, in a stream of their own.

    On a CPU they are copies, made at once.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def stow(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Copies in host memory; nobody may overwrite the tensors meanwhile, but they may be forgotten."""
        return self._moved(tensors, torch.device("cpu"))

    def fetch(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Copies on the device of what was stowed."""
        return self._moved(tensors, self.device)

    def _moved(self, tensors: Sequence[Tensor], place: torch.device) -> tuple[Tensor, ...]:
        if self._stream is None:
            return _copied(tensors, place)
        now = torch.cuda.current_stream(self.device)
        if place.type == "cpu":
            self._stream.wait_stream(now)
        with torch.cuda.stream(self._stream):
            copies = _copied(tensors, place)
        if place.type == "cuda":
            now.wait_stream(self._stream)
        # memory of one stream that the other uses is not given to anyone before that is done with it
        for tensor in tensors if place.type == "cpu" else copies:
            tensor.record_stream(self._stream if place.type == "cpu" else now)
        return copies


def _copied(tensors: Sequence[Tensor], place: torch.device) -> tuple[Tensor, ...]:
    """Copies elsewhere, in page-locked memory if from a GPU to the host.

    Tensors that share memory share that of the copies, where all of it is no more than they are together.
    """
    wanted: Counter[int] = Counter()
    for tensor in tensors:
        wanted[tensor.untyped_storage().data_ptr()] += tensor.nbytes
    whole: dict[int, Tensor] = {}
    copies = []
    for tensor in tensors:
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if storage.nbytes() > wanted[key]:
            copies.append(_copy(tensor, place))
            continue
        if key not in whole:
            whole[key] = _copy(torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage), place)
        copy = torch.empty(0, dtype=tensor.dtype, device=place)
        copies.append(
            copy.set_(whole[key].untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
        )
    return tuple(copies)


def _copy(tensor: Tensor, place: torch.device) -> Tensor:
    pinned = place.type == "cpu" and tensor.device.type == "cuda"
    return torch.empty_like(tensor, device=place, pin_memory=pinned).copy_(tensor, non_blocking=True)


def in_host_memory(x: Tensor, device: torch.device) -> Tensor:
    """A copy in host memory, from which `device` can fetch it at full speed: page-locked for a GPU."""
    copy = torch.empty_like(x, device="cpu", pin_memory=device.type == "cuda")
    return copy.copy_(x)
