"""Read ahead: what the next step needs is read in a thread while this one computes."""

import ctypes
import threading
import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

from superscaler.errors import BuildError

T = TypeVar("T")
_LEAVE_SECONDS = 5.0
"""How long the end of the process waits for a read that was told to stop, before it goes without."""


class _Reading(Generic[T]):
    """One call of a reader, in a thread of its own; it keeps the result, or the error."""

    def __init__(self, read: Callable[[int], T], step: int) -> None:
        self.step = step
        self._read = read
        self._result: list[T] = []
        self._error: BaseException | None = None
        # A reader that waits for something that never comes must not keep the process.
        self._thread = threading.Thread(target=self._run, name=f"data of step {step}", daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Whether it is done, after at most so long."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def result(self) -> T:
        """What was read; raises what the reader raised."""
        if self._error is not None:
            raise self._error
        return self._result[0]

    def stop(self) -> None:
        """Raise SystemExit in the thread: at its next line of Python, wherever that is."""
        identity = self._thread.ident
        if identity is not None and self._thread.is_alive():
            exception = ctypes.py_object(SystemExit)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(identity), exception)

    def _run(self) -> None:
        try:
            self._result.append(self._read(self.step))
        except BaseException as error:
            self._error = error


class ReadAhead(Generic[T]):
    """Reads step by step, at most one step ahead; no two reads are at once.

    Args:
        read: Reads what a step needs.
        seconds: Longest wait for one read.
    """

    def __init__(self, read: Callable[[int], T], seconds: float) -> None:
        self._read, self._seconds = read, seconds
        self._running: list[_Reading[T]] = []
        # At the latest when the interpreter ends: a thread that is cut off inside torch takes the process with it.
        self.close = weakref.finalize(self, _leave, self._running)
        """Stop a read in progress, and start no other."""

    def get(self, step: int) -> T:
        """What `step` needs; an error of reading ahead for it is raised here.

        Raises:
            BuildError: It took too long.
        """
        reading = self._running[0] if self._running else _Reading(self._read, step)
        if reading.step != step:
            self.drop()
            reading = _Reading(self._read, step)
        self._running[:] = [reading]
        self._wait(reading)
        self._running.clear()
        return reading.result()

    def start(self, step: int) -> None:
        """Begin to read what `step` needs."""
        if not self._running and self.close.alive:
            self._running.append(_Reading(self._read, step))

    def drop(self) -> None:
        """Forget what has been read ahead."""
        for reading in self._running:
            self._wait(reading)
        self._running.clear()

    def _wait(self, reading: _Reading[T]) -> None:
        if not reading.wait(self._seconds):
            raise BuildError(
                f"the data of step {reading.step + 1} was not read in {self._seconds:.0f} s",
                remedy="look at what the data set waits for, or wait longer: --timeout",
            )


def _leave(running: list[_Reading[T]]) -> None:
    for reading in running:
        reading.stop()
        reading.wait(_LEAVE_SECONDS)
    running.clear()
