"""Waits: which communication a rank is in, called by which line, and since when."""

import contextlib
import linecache
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

_INSIDE = (str(Path(__file__).parent), contextlib.__file__)
"""Files whose lines say nothing of the program."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of source that is being run."""

    file: str
    number: int
    function: str

    @staticmethod
    def of(frame: FrameType) -> "Line":
        """The one a frame is at."""
        return Line(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)

    def __str__(self) -> str:
        text = linecache.getline(self.file, self.number).strip()
        return f"{Path(self.file).name}:{self.number}, {self.function}: {text}"


@dataclass(frozen=True, slots=True)
class Wait:
    """One communication."""

    operation: str
    """What is done, such as ``all_gather``."""
    where: str
    """Over which axis, or with which stage."""
    ranks: tuple[int, ...]
    """All that take part."""
    line: Line
    """Of the program."""
    since: float
    """By the monotonic clock."""


class Waits:
    """What one rank waits for. The rank's own thread writes it, a watchdog reads it.

    On a GPU a communication is only put into a queue by the program, and counts as long as the device has not done
    it: then the wait is for the oldest that is not done.

    Args:
        device: Where this rank's tensors are.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.step = 0
        """The training step the rank is in; 0 where it does not train."""
        self.is_marked = False
        """Whether communications are spans in a profile."""
        self._mark: Any = None
        self._is_queued = torch.device(device).type == "cuda"
        self._wait: Wait | None = None
        self._left = time.monotonic()
        self._queued: deque[tuple[Wait, Any]] = deque()

    def begin(self, operation: str, where: str, ranks: Sequence[int]) -> None:
        """A communication begins."""
        if self.is_marked:
            self._mark = torch.profiler.record_function(f"{operation} over {where}")
            self._mark.__enter__()
        self._wait = Wait(operation, where, tuple(ranks), _line_outside(sys._getframe(1)), time.monotonic())

    def end(self) -> None:
        """It is over, or on a GPU in the queue."""
        if self._mark is not None:
            self._mark.__exit__(None, None, None)
            self._mark = None
        # what is recorded is done in replays, which are waits of their own
        if self._is_queued and self._wait is not None and not torch.cuda.is_current_stream_capturing():
            self._enqueue(self._wait)
        self._wait = None
        self._left = time.monotonic()

    @contextlib.contextmanager
    def during(self, operation: str, where: str, ranks: Sequence[int]) -> Iterator[None]:
        """A communication goes on."""
        self.begin(operation, where, ranks)
        try:
            yield
        finally:
            self.end()

    def oldest(self) -> Wait | None:
        """The communication this rank waits for; None if it waits for none."""
        for wait, event in tuple(self._queued):
            if not event.query():
                return wait
        return self._wait

    @property
    def left(self) -> float:
        """When the rank came out of its last communication, by the monotonic clock."""
        return self._left

    def _enqueue(self, wait: Wait) -> None:
        while self._queued and self._queued[0][1].query():
            self._queued.popleft()
        event = torch.cuda.Event()
        event.record()
        self._queued.append((wait, event))


def _line_outside(frame: FrameType | None) -> Line:
    """The line that called into the runtime."""
    assert frame is not None
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame = frame.f_back
    return Line.of(frame)
