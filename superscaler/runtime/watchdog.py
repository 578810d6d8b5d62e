"""Watchdog: ranks that wait for one another too long end, and say who is missing and where each waits.

Each rank tells its position to a store that all share, once per beat. The first whose communication takes longer than
allowed collects the positions of all, twice, to see who still tells; it prints what holds them up, and ends. The others
find that in the store, and end too. What the store does not answer is reported without it.
"""

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from superscaler.runtime.positions import Position, explain, position
from superscaler.runtime.waits import Waits

BEAT = 1.0
"""Seconds from one position to the next."""
SAMPLING = 3 * BEAT
"""Seconds between the two moments at which positions are collected."""
LINGER = 4 * BEAT
"""What the first rank stays after another has reported."""
ANSWER = 10.0
"""Longest wait for the store, or for the rank that reports, in seconds."""


class Watchdog:
    """Watches one rank; every rank makes one, at the same time.

    Args:
        store: Of all ranks, a `torch.distributed` store.
        rank: This process.
        world_size: How many ranks there are.
        waits: What this rank waits for.
        timeout: Longest communication, in seconds.
        folder: Of the programs.
    """

    def __init__(
        self, store: Any, rank: int, world_size: int, waits: Waits, timeout: float, folder: Path
    ) -> None:
        self._rank, self._world_size, self._timeout, self._folder = rank, world_size, timeout, folder
        self._waits = waits
        self._closed = threading.Event()
        self._has_reported = False
        # a store answers one thread at a time, and one that hangs must not hold up the others
        self._to_tell, self._to_ask = store.clone(), store.clone()
        self._threads = [
            threading.Thread(target=work, name=f"watchdog {name}", daemon=True)
            for name, work in (("beats", self._beat), ("limit", self._limit))
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Watch no more."""
        self._closed.set()
        for thread in self._threads:
            thread.join(ANSWER)

    def _beat(self) -> None:
        """Tell where this rank is, until another one ends the run."""
        number = 0
        try:
            while not self._closed.wait(BEAT if number else 0):
                self._to_tell.set(_key(self._rank), position(self._waits, number, self._folder).to_json())
                number += 1
                if self._to_tell.check(["watchdog/verdict"]) and not self._has_reported:
                    if self._rank == 0:  # which mostly keeps the store: others may still have to hear of it
                        self._closed.wait(LINGER)
                    self._end(f"ends, as {self._to_tell.get('watchdog/verdict').decode()}")
        except RuntimeError:
            if not self._closed.wait(self._timeout):
                self._end(f"ends, as the store of all ranks has been gone for {self._timeout:g} s")

    def _limit(self) -> None:
        """End the run once a communication takes too long."""
        while not self._closed.wait(BEAT / 4):
            own = position(self._waits, 0, self._folder)
            if own.waits_for and own.seconds > self._timeout:
                self._give_up(own)

    def _give_up(self, own: Position) -> None:
        verdict: list[str] = []
        asking = threading.Thread(target=self._ask, args=(verdict.append,), daemon=True)
        asking.start()
        asking.join(2 * ANSWER)
        self._report(verdict[0] if verdict else self._without_store(own))
        if verdict:
            self._tell_others()
        os._exit(1)

    def _report(self, text: str) -> None:
        self._print(
            f"CommunicationError: a communication takes longer than the {self._timeout:g} s allowed\n  {text}\n"
            "  remedy: look at what the missing or busy rank does there; where ranks are only slow, raise --timeout"
        )

    def _ask(self, answer: Callable[[str], None]) -> None:
        """Collect positions and decide; of ranks that ask at once one does, and the others leave it to that."""
        try:
            chosen = self._to_ask.compare_set("watchdog/reporter", "", str(self._rank)).decode()
            if chosen != str(self._rank):
                self._closed.wait(ANSWER)  # the verdict, found by the other thread, ends this process
                answer(f"rank {chosen} was to say who is missing, but has not")
                return
            before = self._positions()
            self._closed.wait(SAMPLING)
            answer(explain(before, self._positions()))
        except RuntimeError:
            return

    def _positions(self) -> dict[int, Position | None]:
        keys = {rank: _key(rank) for rank in range(self._world_size)}
        told = {rank: key for rank, key in keys.items() if self._to_ask.check([key])}
        found = dict(zip(told, self._to_ask.multi_get(list(told.values())), strict=True)) if told else {}
        return {rank: Position.from_json(found[rank]) if rank in found else None for rank in keys}

    def _without_store(self, own: Position) -> str:
        seen = explain({self._rank: None}, {self._rank: own}).splitlines()[0]
        return f"missing: the rank that keeps the store (mostly rank 0) does not answer\n  {seen}"

    def _tell_others(self) -> None:
        """Let them end by themselves: the store may go with this process."""
        self._has_reported = True
        try:
            self._to_ask.set("watchdog/verdict", f"rank {self._rank} has reported who is missing")
        except RuntimeError:
            return
        self._closed.wait(2 * BEAT)

    def _end(self, text: str) -> None:
        self._print(text)
        os._exit(1)

    def _print(self, text: str) -> None:
        sys.stdout.flush()
        print(f"superscaler: rank {self._rank}: {text}", file=sys.stderr, flush=True)  # noqa: T201


def _key(rank: int) -> str:
    return f"watchdog/{rank}"
