"""The serving process: an engine is started, HTTP is served, and a signal ends both when what runs is answered."""

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from superscaler.errors import ServingError
from superscaler.runtime.serving.generation import told
from superscaler.runtime.serving.sampling_params import SamplingParams
from superscaler.runtime.serving.server.application import Server, ServerLimits
from superscaler.runtime.serving.server.engine_client import EngineClient
from superscaler.runtime.serving.server.engine_process import EngineProcess
from superscaler.runtime.serving.server.metrics import Metrics
from superscaler.runtime.serving.server.tokenizer import Tokenizer

_CLOSE_SECONDS = 5
"""What connections are given after the last answers."""
_LOOK_SECONDS = 0.05

log = logging.getLogger("superscaler.serving")


@dataclass(frozen=True, slots=True)
class ServingOptions:
    """How a server is run."""

    model: str
    """The name under which the model is served."""
    host: str = "127.0.0.1"
    port: int = 8000
    limits: ServerLimits = field(default_factory=ServerLimits)
    api_keys: tuple[str, ...] = ()
    defaults: SamplingParams = field(default_factory=SamplingParams)
    """How tokens are drawn, and of a chat how many, where a request does not say."""
    max_restarts: int = 3
    start_seconds: float = 600.0
    """What an engine is given until it is ready."""
    drain_seconds: float = 30.0
    """What answers that run are given when the server is to end."""


def run(
    command: Callable[[str], Sequence[str]], options: ServingOptions, tokenizer: Tokenizer | None
) -> None:
    """Serve until a signal says to end.

    Args:
        command: Makes the engine's command, of the socket that it is to connect to.
        options: How.
        tokenizer: The model's.

    Raises:
        ServingError: The engine or the server cannot be started, or the engine died for good.
    """
    config = uvicorn.Config("", loop="auto")
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_serve(command, options, tokenizer))


async def _serve(
    command: Callable[[str], Sequence[str]], options: ServingOptions, tokenizer: Tokenizer | None
) -> None:
    metrics = Metrics(options.model)

    async def launch(hear):
        return await EngineProcess.start(command, hear, seconds=options.start_seconds, echo=_echo)

    client = EngineClient(launch, options.max_restarts, metrics.observe_load)
    asked = asyncio.Event()
    with _signals(asked):
        start = asyncio.ensure_future(client.start())
        ending = asyncio.ensure_future(asked.wait())
        await asyncio.wait((start, ending), return_when=asyncio.FIRST_COMPLETED)
        if not start.done():
            start.cancel()
            await asyncio.wait((start,))
            return
        await start
        try:
            await _serve_http(client, metrics, options, tokenizer, ending)
        finally:
            ending.cancel()
            await client.stop()
    if client.died.is_set() and client.failure is not None:
        raise client.failure


async def _serve_http(
    client: EngineClient,
    metrics: Metrics,
    options: ServingOptions,
    tokenizer: Tokenizer | None,
    ending: asyncio.Future[Any],
) -> None:
    server = Server(
        client, metrics, options.model, tokenizer, options.limits, options.api_keys, defaults=options.defaults
    )
    config = uvicorn.Config(
        server.app(), options.host, options.port, log_level="warning", access_log=False, lifespan="off",
        timeout_graceful_shutdown=_CLOSE_SECONDS, server_header=False, ws="none",
    )  # fmt: skip
    http = _Http(config)
    serving = asyncio.ensure_future(http.serve())
    while not (http.started or serving.done()):
        await asyncio.sleep(_LOOK_SECONDS)
    if serving.done():
        raise ServingError(f"cannot listen on {options.host}:{options.port}", remedy="choose another --port")
    facts = client.facts
    if taken := told(options.defaults):
        log.info("where a request does not say, the model's generation_config does: %s", taken)
    log.info(
        "serving %s on http://%s:%d (plan %s, %d rank(s), %d pages of %d tokens)", options.model, options.host,
        http.port, facts.plan, facts.ranks, facts.pages, facts.page_size,
    )  # fmt: skip
    died = asyncio.ensure_future(client.died.wait())
    await asyncio.wait((serving, ending, died), return_when=asyncio.FIRST_COMPLETED)
    died.cancel()
    server.is_draining = True
    await _drained(client, options.drain_seconds)
    await client.stop()
    http.should_exit = True
    await serving


async def _drained(client: EngineClient, seconds: float) -> None:
    """Wait until nothing is in flight, at most so long."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    if client.in_flight:
        log.info("%d request(s) are answered before the server ends", client.in_flight)
    while client.in_flight and loop.time() < end:
        await asyncio.sleep(_LOOK_SECONDS)


class _Http(uvicorn.Server):
    """Leaves signals to whoever runs it: it would turn connections away while answers are still to come."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    @property
    def port(self) -> int:
        """On which it listens."""
        return self.servers[0].sockets[0].getsockname()[1]


@contextmanager
def _signals(asked: asyncio.Event) -> Iterator[None]:
    """The first signal to end asks for it; with the second, the process ends as it would have without this."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)

    def ask() -> None:
        asked.set()
        for number in numbers:
            loop.remove_signal_handler(number)

    for number in numbers:
        loop.add_signal_handler(number, ask)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _echo(line: str) -> None:
    print(line, file=sys.stderr)  # noqa: T201
