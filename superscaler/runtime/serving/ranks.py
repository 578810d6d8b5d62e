"""Ranks: the first decides which batches are run, and all run them."""

from collections.abc import Callable

from torch import Tensor

from superscaler.runtime.serving.batch import Batch
from superscaler.runtime.serving.orders import Orders
from superscaler.runtime.serving.worker import Worker

_END = "end"
_STILL_HERE = "still here"


class Leader:
    """The first rank, as the engine sees it: all ranks in one.

    Args:
        worker: Its own part.
        orders: What the others hear.
    """

    def __init__(self, worker: Worker, orders: Orders) -> None:
        self._worker, self._orders = worker, orders

    def start(self, batch: Batch) -> Callable[[], Tensor]:
        """Let all ranks run a batch, and run this one's part; what waits for the logits [wanted, vocab].

        Raises:
            CommunicationError: Another rank is gone, or took longer than the timeout; what is returned raises it, too.
        """
        self._orders.tell(batch)
        return self._worker.start(batch)

    def beat(self) -> None:
        """Let the others know, while there is nothing to run, that there may yet be; and notice that one is gone."""
        self._orders.tell(_STILL_HERE)
        self._orders.wait()

    def end(self) -> None:
        """Let the others go."""
        self._orders.tell(_END)
        self._orders.wait()


def follow(worker: Worker, orders: Orders) -> None:
    """Run what the first rank says, until it says that this was all.

    Raises:
        CommunicationError: Another rank is gone, or is silent for longer than the timeout.
    """
    while (order := orders.hear()) != _END:
        if order != _STILL_HERE:
            worker.start(order)
