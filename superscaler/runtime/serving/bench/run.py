"""Benchmark of a server: requests are sent as users would send them, and what comes is measured."""

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

from superscaler.errors import ServingError
from superscaler.runtime.serving.bench.client import BenchClient, Measured
from superscaler.runtime.serving.bench.prompts import Ask
from superscaler.runtime.serving.bench.report import counters, make_report

_PATH = "/v1/completions"


@dataclass(frozen=True, slots=True)
class Traffic:
    """How requests are sent.

    Raises:
        ServingError: They cannot be.
    """

    request_rate: float = inf
    """Per second; infinite: all at once."""
    burstiness: float = 1.0
    """Of the times between two, which are gamma distributed: 1 is Poisson, less comes in bursts, more evenly."""
    max_concurrency: int | None = None
    """Most that are answered at once; others wait in the client."""
    ignore_eos: bool = False
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("request_rate", "burstiness"):
            if not getattr(self, name) > 0:
                raise ServingError(f"{name} is {getattr(self, name)}", remedy="give more than 0")
        if self.max_concurrency is not None and self.max_concurrency < 1:
            raise ServingError(f"max_concurrency is {self.max_concurrency}", remedy="give at least 1")


def departures(asks: Sequence[Ask], traffic: Traffic) -> Iterator[float]:
    """When each request is sent, in seconds after the beginning: as its data says, else by the rate."""
    generator, at = np.random.default_rng(traffic.seed), 0.0
    for ask in asks:
        yield at if ask.at is None else ask.at
        if traffic.request_rate != inf:
            at += generator.gamma(traffic.burstiness, 1 / (traffic.request_rate * traffic.burstiness))


@dataclass(frozen=True, slots=True)
class Served:
    """What a server says of its model."""

    model: str
    vocab: int | None
    """Not every server says it."""


async def look_up(client: BenchClient) -> Served:
    """Which model a server has.

    Raises:
        ServingError: It does not say.
    """
    try:
        card = json.loads(await client.get("/v1/models"))["data"][0]
        return Served(card["id"], card.get("vocab_size"))
    except (ValueError, LookupError, TypeError) as error:
        if isinstance(error, ServingError):
            raise
        raise ServingError("the server does not say which model it has") from error


async def run_benchmark(
    client: BenchClient,
    model: str,
    asks: Sequence[Ask],
    traffic: Traffic,
    goodput: dict[str, float],
    percentiles: Sequence[float] = (99.0,),
) -> dict[str, Any]:
    """Send all, and report.

    Args:
        client: Of the server.
        model: Which is asked.
        asks: What.
        traffic: How.
        goodput: Milliseconds within which a request is good.
        percentiles: Which are told.
    """
    before = await _speculation(client)
    began = time.perf_counter()
    measured = await _send_all(client, model, asks, traffic)
    seconds = max((each.ended for each in measured), default=time.perf_counter()) - began
    after = await _speculation(client)
    drafted = {name: value - before.get(name, 0.0) for name, value in after.items()}
    rate = "inf" if traffic.request_rate == inf else traffic.request_rate
    return {
        "date": time.strftime("%Y%m%d-%H%M%S"),
        "backend": "openai",
        "model_id": model,
        "num_prompts": len(asks),
        "request_rate": rate,
        "burstiness": traffic.burstiness,
        "max_concurrency": traffic.max_concurrency,
        **make_report(measured, seconds, goodput, percentiles, drafted),
    }


async def _send_all(client: BenchClient, model: str, asks: Sequence[Ask], traffic: Traffic) -> list[Measured]:
    places = asyncio.Semaphore(traffic.max_concurrency) if traffic.max_concurrency else None

    async def send(ask: Ask) -> Measured:
        async with AsyncExitStack() as stack:
            if places is not None:
                await stack.enter_async_context(places)
            return await client.complete(_PATH, _body(model, ask, traffic))

    loop, tasks = asyncio.get_running_loop(), []
    began = loop.time()
    order = sorted(zip(departures(asks, traffic), range(len(asks)), strict=True))
    for at, number in order:
        if (wait := began + at - loop.time()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(send(asks[number])))
    measured = await asyncio.gather(*tasks)
    numbers = [number for _, number in order]
    return [each for _, each in sorted(zip(numbers, measured, strict=True), key=lambda pair: pair[0])]


def _body(model: str, ask: Ask, traffic: Traffic) -> dict[str, Any]:
    prompt = ask.prompt if isinstance(ask.prompt, str) else list(ask.prompt)
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": ask.output_tokens,
        "temperature": traffic.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return body | ({"ignore_eos": True} if traffic.ignore_eos else {})


async def _speculation(client: BenchClient) -> dict[str, float]:
    """The server's counters; none of a server that has no metrics."""
    try:
        return counters((await client.get("/metrics")).decode())
    except ServingError:
        return {}
