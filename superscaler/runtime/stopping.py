"""Stopping: a signal ends a run between two steps, the same two on all ranks."""

import os
import signal
import sys
import threading
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from superscaler.runtime.ranks import group_of_all
from superscaler.runtime.training_run import TrainingRun
from superscaler.runtime.waits import Waits

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Within it, SIGTERM and SIGINT ask for an end instead of ending the process; a second one ends it at once.

    A signal may reach some ranks only, at different steps. So all ranks vote after every step, and count the votes
    after the next, when they have long arrived: all then know the same, and nobody has waited.

    Args:
        rank: This process.
        world_size: How many ranks there are; each makes one of these, at the same time.
        waits: Told of waiting for votes.
        timeout: Longest wait for them, in seconds.
    """

    def __init__(self, rank: int, world_size: int, waits: Waits, timeout: float) -> None:
        self._rank, self._everyone, self._waits = rank, tuple(range(world_size)), waits
        self._group = group_of_all(timeout) if world_size > 1 else None
        self._asked = 0
        self._vote: tuple[Tensor, Any] | None = None
        self.is_due = False
        """Whether the run ends here, on all ranks."""

    def __enter__(self) -> "Stop":
        """Take signals."""
        # a handler in Python would run only once the main thread is back from what it waits for
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._woken = signal.set_wakeup_fd(self._writing)
        self._handlers = {number: signal.signal(number, _leave_to_thread) for number in SIGNALS}
        self._listener = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._listener.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave signals as they were, and no vote open."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._woken)
        os.close(self._writing)
        self._listener.join()
        os.close(self._reading)
        if error is None:
            self._count()

    def after_step(self, run: TrainingRun) -> None:
        """Count the votes of the step before, and vote."""
        asked = self._count() if self._group else self._asked
        self.is_due = asked > 0
        if self.is_due and self._rank == 0:
            print(f"note: {signal.Signals(asked).name} ends the run after step {run.steps}", flush=True)  # noqa: T201
        if self._group and not self.is_due:
            vote = torch.tensor([self._asked])
            self._vote = vote, dist.all_reduce(vote, dist.ReduceOp.MAX, group=self._group, async_op=True)

    def _count(self) -> int:
        """The signal that some rank has taken; 0 for none."""
        if self._vote is None:
            return 0
        vote, work = self._vote
        self._vote = None
        with self._waits.during("the vote on whether to stop", "all ranks", self._everyone):
            work.wait()
        return int(vote)

    def _listen(self) -> None:
        while numbers := os.read(self._reading, 1):
            if numbers[0] not in SIGNALS:
                continue
            if self._asked:
                sys.stdout.flush()
                os._exit(128 + numbers[0])
            self._asked = numbers[0]


def _leave_to_thread(number: int, frame: Any) -> None:
    """The thread that listens has been told."""
