"""Host memory: where a device's values may wait, and how a process keeps what it freed.

On CPUs, freed memory stays with the process, so that the next step need not fault it in again.
"""

import ctypes
import sys

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


def in_host_memory(x: Tensor, device: torch.device) -> Tensor:
    """A copy in host memory, from which `device` can fetch it at full speed: page-locked for a GPU."""
    copy = torch.empty_like(x, device="cpu", pin_memory=device.type == "cuda")
    return copy.copy_(x)
