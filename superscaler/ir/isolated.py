"""Isolated: work in a child process that may crash, step by step, so that the step that crashes can be left out.

An operator that trusts the shapes it is given reads, on pieces that do not fit each other, memory that is not its
own. An experiment may find that out; the compiler must survive it.
"""

import faulthandler
import os
import pickle
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch

_SECONDS = 300.0
_MOST_CRASHES = 50
_SUCCEEDED, _FAILED = 0, (1 << 32) - 1


class Crashed(Exception):
    """The work crashed outside of its steps, or too often, or did not end."""


class Steps:
    """The steps of one piece of work, numbered as they come; those that crashed or failed before are left out."""

    def __init__(self, left_out: frozenset[int] = frozenset(), pipe: int | None = None) -> None:
        self.left_out = left_out
        self.pipe = pipe
        self.number = 0

    def enter(self) -> bool:
        """Begin the next step; False where it is to be left out."""
        self.number += 1
        if self.number in self.left_out:
            return False
        self._report(self.number)
        return True

    def leave(self, succeeded: bool) -> None:
        """End the step; one that did not succeed is as good as left out, if the work has to begin again."""
        self._report(_SUCCEEDED if succeeded else _FAILED)

    def _report(self, number: int) -> None:
        if self.pipe is not None:
            os.write(self.pipe, number.to_bytes(4, sys.byteorder))


def isolated(work: Callable[[Steps], Any]) -> Any:
    """What `work` returns, or raises; it runs in a child process where there can be one.

    Raises:
        Crashed: It ended without a result, whatever steps were left out.
    """
    if not hasattr(os, "fork") or torch.cuda.is_initialized():  # a CUDA context does not survive a fork
        return work(Steps())
    left_out: frozenset[int] = frozenset()
    for _ in range(_MOST_CRASHES):
        reports, answer = _in_child(work, left_out)
        if answer is not None:
            value, error = answer
            if error is not None:
                raise error
            return value
        if not reports or reports[-1] in (_SUCCEEDED, _FAILED):
            break
        failed = {number for number, end in pairwise(reports) if end == _FAILED}
        left_out |= failed | {reports[-1]}
    raise Crashed("it crashes the process it runs in, or does not end")


def _in_child(work: Callable[[Steps], Any], left_out: frozenset[int]) -> tuple[Sequence[int], Any]:
    """Each step begun and how it ended, and the answer if there is one."""
    steps, steps_in = os.pipe()
    answer, answer_in = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork with threads: the child starts none
        child = os.fork()
    if not child:
        _work_in_child(work, Steps(left_out, steps_in), answer_in)
    os.close(steps_in)
    os.close(answer_in)
    said = _read(child, (steps, answer))
    os.waitpid(child, 0)
    reports = memoryview(said[steps]).cast("I").tolist()
    try:
        return reports, pickle.loads(said[answer])
    except (EOFError, pickle.UnpicklingError):
        return reports, None


def _read(child: int, pipes: tuple[int, int]) -> dict[int, bytes]:
    """All a child writes, until it ends or its time is over."""
    said = dict.fromkeys(pipes, b"")
    still = list(pipes)
    end = time.monotonic() + _SECONDS
    while still:
        ready, _, _ = select.select(still, [], [], max(0.0, end - time.monotonic()))
        if not ready:
            os.kill(child, signal.SIGKILL)
            end = float("inf")
        for pipe in ready:
            part = os.read(pipe, 1 << 16)
            said[pipe] += part
            if not part:
                still.remove(pipe)
                os.close(pipe)
    return said


def _work_in_child(work: Callable[[Steps], Any], steps: Steps, answer_in: int) -> None:
    """Never returns."""
    faulthandler.disable()
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    torch.set_num_threads(1)  # the threads of the parent are not there
    try:
        answer = work(steps), None
    except Exception as error:
        answer = None, error
    with os.fdopen(answer_in, "wb") as file:
        file.write(pickle.dumps(answer))
    os._exit(0)
