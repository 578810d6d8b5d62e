"""Engine client: what a server sees of the engine, which it keeps alive."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager

from superscaler.errors import RequestError, ServingError
from superscaler.runtime.serving.link import End, Progress, Ready, Refused, Submit, ToServer
from superscaler.runtime.serving.output import Load, Output
from superscaler.runtime.serving.request import Request
from superscaler.runtime.serving.server.engine_process import EngineProcess
from superscaler.runtime.serving.server.flight import Flight

_MOST_INTERRUPTIONS = 2
"""A request with which the engine dies once more is not tried again: it may be what kills it."""

log = logging.getLogger("superscaler.serving")


class EngineGone(ServingError):
    """The engine died, and the request does not go on."""


class Answer:
    """What comes of a request, while it comes."""

    def __init__(self, flight: Flight, stop: Callable[[int], None]) -> None:
        self._flight, self.stop_sequence = flight, stop
        self._come: asyncio.Queue[Output | ServingError] = asyncio.Queue()

    def put(self, what: Output | ServingError) -> None:
        """Something new, or why nothing more comes."""
        self._come.put_nowait(what)

    async def __aiter__(self) -> AsyncIterator[Output]:
        """What the steps gave the request's sequences, until all have ended.

        Raises:
            RequestError: The engine cannot serve it.
            ServingError: The engine failed.
        """
        while not (self._flight.is_over and self._come.empty()):
            what = await self._come.get()
            if isinstance(what, ServingError):
                raise what
            yield what


class EngineClient:
    """Requests in flight, and the engine they are with; when it dies, they go on in a new one.

    Args:
        launch: Starts an engine that tells a function each message, and None when it is gone.
        max_restarts: How often a new engine is started before the client gives up.
        observe: Told how busy the engine is, after each of its steps.
    """

    def __init__(
        self,
        launch: Callable[
            [Callable[[EngineProcess, ToServer | None], None]], Awaitable[tuple[EngineProcess, Ready]]
        ],
        max_restarts: int = 3,
        observe: Callable[[Load], None] = lambda load: None,
    ) -> None:
        self._launch, self._restarts_left, self._observe = launch, max_restarts, observe
        self._engine: EngineProcess | None = None
        self._ready: Ready | None = None
        self._flights: dict[str, tuple[Flight, Answer]] = {}
        self._recovery: asyncio.Task[None] | None = None
        self._failure: ServingError | None = None
        self.died = asyncio.Event()
        """Set when there will be no engine any more, without being told to stop."""

    @property
    def facts(self) -> Ready:
        """What the engine said of itself when it was ready."""
        assert self._ready is not None, "the client has not been started"
        return self._ready

    @property
    def is_ready(self) -> bool:
        """Whether the engine takes requests now."""
        return self._engine is not None

    @property
    def failure(self) -> ServingError | None:
        """Why there will be no engine any more."""
        return self._failure

    @property
    def in_flight(self) -> int:
        """Requests that are answered or wait."""
        return len(self._flights)

    @property
    def not_begun(self) -> int:
        """Requests of which nothing has come yet."""
        return sum(not flight.has_begun for flight, _ in self._flights.values())

    async def start(self) -> None:
        """Start the first engine.

        Raises:
            ServingError: It cannot be started; the message has the last lines that it printed.
        """
        await self._start()

    async def _start(self) -> EngineProcess:
        engine, self._ready = await self._launch(self._hear)
        self._engine = engine
        if engine.is_gone:  # while nobody listened
            self._hear(engine, None)
        return engine

    async def stop(self) -> None:
        """End the engine; requests in flight are answered with an error."""
        self._failure = self._failure or EngineGone("the server is stopped")
        self._give_up(self._failure)
        if self._recovery is not None:
            self._recovery.cancel()
            await asyncio.wait((self._recovery,))
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.stop()

    @contextmanager
    def answer(self, request: Request) -> Iterator[Answer]:
        """Have a request served; whoever leaves before its end no longer wants it.

        Raises:
            EngineGone: There is no engine any more.
        """
        if self._failure is not None:
            raise self._failure
        assert request.id not in self._flights, "ids of requests are unique"
        flight = Flight(request)
        answer = Answer(flight, lambda index: self._stop_sequence(flight, index))
        self._flights[request.id] = (flight, answer)
        if self._engine is not None:
            flight.is_sent = True
            self._engine.send(Submit(flight.request))
        try:
            yield answer
        finally:
            left = self._flights.pop(request.id, None)
            if left is not None and not flight.is_over and self._engine is not None:
                self._engine.send(End(request.id))

    def _stop_sequence(self, flight: Flight, index: int) -> None:
        """A sequence of which something has come is no longer wanted."""
        flight.stop(index)
        if self._engine is not None and flight.to_end(index):
            self._engine.send(End(flight.request.id, index, "stop"))

    # -- messages

    def _hear(self, engine: EngineProcess, message: ToServer | None) -> None:
        if engine is not self._engine:  # of one that has been replaced
            return
        if isinstance(message, Progress):
            for output in message.outputs:
                self._hear_output(engine, output)
            self._observe(message.load)
        elif isinstance(message, Refused):
            self._end(message.request_id, RequestError(message.reason, param=message.param))
        elif message is None:
            self._engine = None
            self._recovery = asyncio.ensure_future(self._recover(engine))

    def _hear_output(self, engine: EngineProcess, output: Output) -> None:
        flight, answer = self._flights.get(output.request_id, (None, None))
        if flight is None or answer is None:
            return
        if flight.to_end(output.index) and output.finish_reason is None:
            engine.send(End(output.request_id, output.index, "stop"))
        try:
            new = flight.take(output)
        except ServingError as error:
            engine.send(End(output.request_id))
            self._end(output.request_id, error)
            return
        if new is not None:
            answer.put(new)

    def _end(self, request_id: str, error: ServingError) -> None:
        _, answer = self._flights.pop(request_id, (None, None))
        if answer is not None:
            answer.put(error)

    def _give_up(self, error: ServingError) -> None:
        for request_id in list(self._flights):
            self._end(request_id, error)

    # -- death

    async def _recover(self, dead: EngineProcess) -> None:
        """Start a new engine, and let what is in flight go on there."""
        await dead.end()
        error = dead.death("the engine died")
        while self._restarts_left:
            self._restarts_left -= 1
            log.error("%s\nstarting another; restarts left: %d", error, self._restarts_left)
            try:
                engine = await self._start()
            except ServingError as fault:
                error = fault
                continue
            self._send_again(engine)
            log.info("another engine serves; requests that go on: %d", len(self._flights))
            return
        log.error("%s\nno restarts are left", error)
        self._failure = EngineGone("the engine died, and is not started again", remedy="see the server's log")
        self._give_up(self._failure)
        self.died.set()

    def _send_again(self, engine: EngineProcess) -> None:
        for request_id, (flight, _) in list(self._flights.items()):
            if flight.is_over:
                continue
            if flight.interruptions == _MOST_INTERRUPTIONS:
                self._end(
                    request_id, EngineGone("the engine died again and again while it served the request")
                )
            else:
                engine.send(Submit(flight.again()))
