"""Keep tensors alive until they are sent."""

import queue
import threading
from collections import deque
from typing import Any

import torch
from torch import Tensor


class PendingSends:
    """Sends under way, each with its tensor.

    NCCL tells which sends are complete. Gloo's are complete only once waited for, and waiting in the program
    could hold up the very rank the receiver waits for: a thread of its own waits for them, in order.
    """

    def __init__(self, *, is_gloo: bool) -> None:
        self._is_gloo = is_gloo
        self._started: deque[tuple[Any, Tensor | list[Tensor]]] = deque()
        self._queue: queue.Queue[tuple[Any, Tensor | list[Tensor]]] = queue.Queue()
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None

    def add(self, work: Any, x: Tensor | list[Tensor]) -> None:
        """Hold `x` until `work` is done; raises what an earlier send failed with."""
        self._raise_failure()
        if self._is_gloo:
            if self._thread is None:
                self._thread = threading.Thread(target=self._wait_in_order, name="pending sends", daemon=True)
                self._thread.start()
            self._queue.put((work, x))
            return
        self._started.append((work, x))
        if torch.cuda.is_current_stream_capturing():
            return  # what is only recorded never completes; `wait` records that what follows comes after it
        while self._started and self._started[0][0].is_completed():
            self._started.popleft()

    def wait(self) -> None:
        """Return once every send is done; raises what one failed with."""
        self._queue.join()
        self._raise_failure()
        while self._started:
            self._started.popleft()[0].wait()

    def _wait_in_order(self) -> None:
        while True:
            work, _ = self._queue.get()
            try:
                work.wait()
            except Exception as error:
                self._error = self._error or error
            finally:
                del work, _
                self._queue.task_done()

    def _raise_failure(self) -> None:
        if self._error is not None:
            raise RuntimeError(str(self._error)) from self._error
