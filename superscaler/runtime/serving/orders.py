"""Orders: what the first rank tells the others, which hear it in order; it does not wait until they listen."""

import pickle
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from superscaler.runtime.communication import naming_failures
from superscaler.runtime.pending_sends import PendingSends


class Orders:
    """The way from the first rank to the others. Every rank makes one at the same time.

    Orders travel between hosts' memories whatever the ranks compute on, so that none waits behind what a device does.

    Args:
        ranks: How many there are.
        rank: This process.
        timeout: Longest wait for another rank, in seconds.
    """

    def __init__(self, ranks: int, rank: int, timeout: float) -> None:
        self._ranks, self._rank, self._timeout = ranks, rank, timeout
        self._sends = PendingSends(is_gloo=True)
        self._group: Any = None
        if ranks > 1:
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))

    def tell(self, order: object) -> None:
        """Send the others an order that can be pickled, from the first rank.

        Raises:
            CommunicationError: An earlier one did not arrive.
        """
        if self._ranks == 1:
            return
        content = torch.frombuffer(bytearray(pickle.dumps(order)), dtype=torch.uint8)
        size = torch.tensor([len(content)])
        with self._naming("telling the other ranks what to run"):
            for rank in range(1, self._ranks):
                for part in (size, content):
                    self._sends.add(dist.isend(part, rank, group=self._group), part)

    def wait(self) -> None:
        """Return once all orders have been heard.

        Raises:
            CommunicationError: One was not.
        """
        with self._naming("telling the other ranks what to run"):
            self._sends.wait()

    def hear(self) -> Any:
        """The next order, on any other rank.

        Raises:
            CommunicationError: The first rank is gone, or is silent for longer than the timeout.
        """
        with self._naming("hearing what to run"):
            size = torch.empty(1, dtype=torch.int64)
            dist.recv(size, 0, group=self._group)
            content = torch.empty(int(size), dtype=torch.uint8)
            dist.recv(content, 0, group=self._group)
        return pickle.loads(content.numpy().tobytes())

    def _naming(self, what: str) -> AbstractContextManager[None]:
        remedy = (
            "look for the first error of another rank; where ranks are only slow, serve with a larger timeout"
        )
        return naming_failures(
            f"{what} failed on rank {self._rank} of {self._ranks}",
            f"{remedy} (now {self._timeout:g} seconds)",
        )
