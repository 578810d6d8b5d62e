"""A link from host memory to a device, on a machine where the two are one memory: what it takes is waited for."""

import time
from collections.abc import Sequence

from torch import Tensor

from superscaler.runtime.fetched_ahead import ThreadArrival, ThreadCarrier


class SlowLink(ThreadCarrier):
    """Copies as the CPU's own carrier does, and no group arrives before the link would have brought it.

    Args:
        bytes_per_second: Of the link.
    """

    def __init__(self, bytes_per_second: float) -> None:
        super().__init__()
        self._bytes_per_second = bytes_per_second
        self._busy_until = 0.0

    def start(self, sources: Sequence[Tensor]) -> ThreadArrival:
        """Set tensors on their way, behind those that are on it."""
        seconds = sum(source.nbytes for source in sources) / self._bytes_per_second
        self._busy_until = max(self._busy_until, time.monotonic()) + seconds
        copying = super().start(sources)
        return ThreadArrival(copying.copies, self._thread.submit(_arrive, copying, self._busy_until))


def _arrive(copying: ThreadArrival, at: float) -> None:
    copying.wait()
    time.sleep(max(0.0, at - time.monotonic()))
