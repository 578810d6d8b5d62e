"""Ranks: the first decides which batches are run, and all run them."""

from torch import Tensor

from superscaler.runtime.everyone import Everyone
from superscaler.runtime.serving.batch import Batch
from superscaler.runtime.serving.worker import Worker

_END = "end"
_STILL_HERE = "still here"


class Leader:
    """The first rank, as the engine sees it: all ranks in one.

    Args:
        worker: Its own part.
        everyone: It and the others.
    """

    def __init__(self, worker: Worker, everyone: Everyone) -> None:
        self._worker, self._everyone = worker, everyone

    def run(self, batch: Batch) -> Tensor:
        """The logits [wanted, vocab] of a batch, which all ranks run.

        Raises:
            CommunicationError: Another rank is gone, or took longer than the timeout.
        """
        self._everyone.value_of(0, batch)
        return self._worker.run(batch)

    def beat(self) -> None:
        """Let the others know, while there is nothing to run, that there may yet be; and notice that one is gone."""
        self._everyone.value_of(0, _STILL_HERE)

    def end(self) -> None:
        """Let the others go."""
        self._everyone.value_of(0, _END)


def follow(worker: Worker, everyone: Everyone) -> None:
    """Run what the first rank says, until it says that this was all.

    Raises:
        CommunicationError: Another rank is gone, or is silent for longer than the timeout.
    """
    while (order := everyone.value_of(0, None)) != _END:
        if order != _STILL_HERE:
            worker.run(order)
