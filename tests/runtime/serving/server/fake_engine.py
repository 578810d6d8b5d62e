"""An engine whose model is a table: real scheduling and sampling, no program; it dies when told to.

As a program it does what ``torchrun serve.py`` does: ``python fake_engine.py --connect SOCKET``.
"""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Client

import torch

from superscaler.errors import RequestError, ServingError
from superscaler.runtime.serving.engine import Engine
from superscaler.runtime.serving.grammar.matcher import Grammars
from superscaler.runtime.serving.kv_cache import KvCache
from superscaler.runtime.serving.limits import Limits
from superscaler.runtime.serving.link import KEY, End, Progress, Ready, Refused, Stop, Submit
from superscaler.runtime.serving.policies import make_policy
from superscaler.runtime.serving.scheduler import Scheduler

VOCAB, LONGEST, PAGES, PAGE_SIZE = 260, 512, 4096, 16
END = 257
"""The token with which the model ends a text, where a rule gives it."""
READY = Ready(VOCAB, LONGEST, PAGES, PAGE_SIZE, "none", 1)

Rule = Callable[[int, int], torch.Tensor]
"""Logits [vocab] after a token and its position."""


def table(token: int, position: int) -> torch.Tensor:
    """Logits that look random, of any token that is a byte."""
    generator = torch.Generator().manual_seed(token * 1009 + position)
    logits = torch.full((VOCAB,), -30.0)
    logits[97:123] = torch.randn(26, generator=generator)
    return logits


def writes(text: bytes, end: bool = True) -> Rule:
    """Byte number p of the text follows a token at position p, whatever it is; then comes the end, and all anew."""

    def rule(token: int, position: int) -> torch.Tensor:
        place = position % (len(text) + 1) if end else position % len(text)
        logits = torch.zeros(VOCAB)
        logits[END if place == len(text) else text[place]] = 50.0
        return logits

    return rule


def make_engine(rule: Rule = table, grammars: Grammars | None = None, steps: int = 1) -> Engine:
    def start(batch):
        return lambda: torch.stack([rule(batch.tokens[row], batch.positions[row]) for row in batch.wanted])

    return engine_that(start, grammars, steps)


def engine_that(start, grammars: Grammars | None = None, steps: int = 1) -> Engine:
    """An engine that starts batches so."""
    cache = KvCache(PAGES, PAGE_SIZE, 0)
    limits, ends = Limits(LONGEST, step_tokens=4096, step_sequences=512), frozenset([END])
    scheduler = Scheduler(cache, make_policy("fcfs"), limits, time.monotonic, ends, steps)
    return Engine(scheduler, cache, start, time.monotonic, end_tokens=ends, grammars=grammars, steps=steps)


class FakeEngine:
    """Stands where an `EngineProcess` stands, in the loop of the test.

    Args:
        hear: Told each message.
        rule: The model.
        step_seconds: Between two steps.
        dies_after: Tokens, after which it dies.
        grammars: Of its requests.
    """

    def __init__(
        self, hear, rule: Rule = table, step_seconds: float = 0.0, dies_after: int | None = None,
        grammars: Grammars | None = None,
    ):  # fmt: skip
        self.engine = make_engine(rule, grammars)
        self.is_gone = False
        self.messages = []
        """All it was told."""
        self._hear, self._step_seconds, self._left = hear, step_seconds, dies_after
        self._come: asyncio.Queue = asyncio.Queue()
        self._task = asyncio.ensure_future(self._lead())

    def send(self, message) -> None:
        self._come.put_nowait(message)
        self.messages.append(message)

    async def stop(self) -> None:
        self.send(Stop())
        await self.end()

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.wait((self._task,))

    def death(self, what: str) -> ServingError:
        return ServingError(what)

    def die(self) -> None:
        self.is_gone = True
        self._hear(self, None)

    async def _lead(self) -> None:
        engine = self.engine
        while not self.is_gone:
            while engine.is_idle or not self._come.empty():
                message = await self._come.get()
                if isinstance(message, Stop):
                    return
                self._take(message)
            outputs = engine.step()
            self._hear(self, Progress(tuple(outputs), engine.load))
            if self._left is not None:
                self._left -= sum(len(output.tokens) for output in outputs)
                if self._left <= 0:
                    self.die()
            await asyncio.sleep(self._step_seconds)

    def _take(self, message) -> None:
        if isinstance(message, Submit):
            try:
                self.engine.add(message.request)
            except RequestError as error:
                self._hear(self, Refused(message.request.id, str(error), error.param))
        elif isinstance(message, End):
            outputs = self.engine.end(message.request_id, message.index, message.reason)
            self._hear(self, Progress(tuple(outputs), self.engine.load))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--connect", required=True)
    parser.add_argument("--fails", action="store_true", help="before it is ready")
    parser.add_argument("--hangs", action="store_true", help="before it is ready")
    parser.add_argument("--dies-after", type=int, default=10**9, help="tokens")
    parser.add_argument("--step-seconds", type=float, default=0.0)
    options = parser.parse_args()
    print("loading", flush=True)
    if options.fails:
        sys.exit("no such weights")
    if options.hangs:
        time.sleep(600)
    engine, left = make_engine(), options.dies_after
    with Client(options.connect, authkey=bytes.fromhex(os.environ[KEY])) as connection:
        connection.send(READY)
        while True:
            while engine.is_idle or connection.poll():
                try:
                    message = connection.recv()
                except EOFError:
                    return
                if isinstance(message, Stop):
                    return
                if isinstance(message, Submit):
                    engine.add(message.request)
                else:
                    engine.end(message.request_id, message.index, message.reason)
            outputs = engine.step()
            connection.send(Progress(tuple(outputs), engine.load))
            left -= sum(len(output.tokens) for output in outputs)
            if left <= 0:
                sys.exit("out of memory")
            time.sleep(options.step_seconds)


if __name__ == "__main__":
    main()
