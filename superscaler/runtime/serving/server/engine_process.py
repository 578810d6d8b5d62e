"""The engine's process: started, spoken to from an event loop that it never holds up, and ended."""

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

from superscaler.errors import ServingError
from superscaler.runtime.launcher import launcher
from superscaler.runtime.serving.link import KEY, Ready, Stop, ToEngine, ToServer

_LAST_LINES = 30
"""Of what the engine has printed, in the message when it dies."""
_STOP_SECONDS = 10.0
"""What an engine that is told to stop is given, and again one that is told so by a signal."""
_DEATH_SECONDS = 2.0
"""What the launcher of an engine that died is given to print why."""


def torchrun(folder: Path, ranks: int, arguments: Sequence[str]) -> Callable[[str], list[str]]:
    """The command that starts a build's engine, given the socket it is to connect to."""
    return lambda address: [*launcher(ranks), str(folder / "serve.py"), "--connect", address, *arguments]


class EngineProcess:
    """An engine that runs; `start` makes one.

    Args:
        process: The launcher, first of its own group of processes.
        hear: Told each message; afterwards, once, None.
        echo: Told each line that the engine prints.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        hear: Callable[["EngineProcess", ToServer | None], None],
        echo: Callable[[str], None],
    ) -> None:
        self._process, self._hear, self._echo = process, hear, echo
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._printed = asyncio.ensure_future(self._read_lines())
        self._messages: SimpleQueue[ToEngine | None] = SimpleQueue()
        self.is_gone = False
        """Whether the connection has ended."""

    @classmethod
    async def start(
        cls,
        command: Callable[[str], Sequence[str]],
        hear: Callable[["EngineProcess", ToServer | None], None],
        *,
        seconds: float,
        echo: Callable[[str], None] = lambda line: None,
    ) -> tuple["EngineProcess", Ready]:
        """Start an engine and wait until it takes requests.

        Args:
            command: Makes the command of the socket that the engine is to connect to.
            hear: Told each message in the event loop; afterwards, once, None.
            seconds: Longest time for loading.
            echo: Told each line that the engine prints.

        Raises:
            ServingError: It ended, or took longer; with the last lines that it printed.
        """
        key = secrets.token_bytes(32)
        folder = tempfile.mkdtemp(prefix="superscaler-")  # only this user can enter it
        try:
            with Listener(os.path.join(folder, "engine"), "AF_UNIX", authkey=key) as listener:
                process = await asyncio.create_subprocess_exec(
                    *command(str(listener.address)),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                    env={**os.environ, KEY: key.hex()},
                    start_new_session=True,
                )
                engine = cls(process, hear, echo)
                try:
                    return engine, await asyncio.wait_for(engine._connect(listener), seconds)
                except TimeoutError:
                    error = engine.death(f"the engine was not ready after {seconds:g} s")
                    await engine.end(0.0)
                    raise error from None
                except BaseException:
                    await engine.end(0.0)
                    raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def send(self, message: ToEngine) -> None:
        """Tell the engine; returns at once."""
        self._messages.put(message)

    async def stop(self) -> None:
        """Let the engine end; where it does not, end it."""
        self.send(Stop())
        await self.end(_STOP_SECONDS)

    async def end(self, patience: float = _DEATH_SECONDS) -> None:
        """Wait so many seconds until all its processes have ended, then end them."""
        if not await self._has_ended(patience):
            family = _family(self._process.pid)
            _signal(self._process.pid, signal.SIGTERM)  # the launcher ends the others
            if not await self._has_ended(_STOP_SECONDS):
                for process in family:
                    _signal(process, signal.SIGKILL)
                await self._has_ended(_STOP_SECONDS)
        self._messages.put(None)

    async def _has_ended(self, seconds: float) -> bool:
        """Whether all of it has ended, after at most so many seconds: nobody is left who could print."""
        ended = asyncio.gather(asyncio.shield(self._printed), self._process.wait())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended, seconds)
            return True
        return False

    def death(self, what: str) -> ServingError:
        """The error that says what happened, with the last lines that were printed."""
        lines = "".join(f"\n    {line}" for line in self._lines) or " nothing"
        return ServingError(f"{what}; the last that it printed:{lines}")

    # -- the connection

    async def _connect(self, listener: Listener) -> Ready:
        accepted = asyncio.ensure_future(asyncio.to_thread(_accept, listener))
        ended = asyncio.ensure_future(self._process.wait())
        try:
            await asyncio.wait((accepted, ended), return_when=asyncio.FIRST_COMPLETED)
            if not accepted.done():
                await self._printed
                raise self.death("the engine ended before it was ready")
            connection = accepted.result()
            assert connection is not None, "nobody else knows the socket"
        finally:
            ended.cancel()
            if not accepted.done():
                _wake(str(listener.address))
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        first: list[ToServer | None] = []

        def hear(message: ToServer | None) -> None:
            self.is_gone = message is None
            if ready.is_set():
                self._hear(self, message)
            else:
                first.append(message)
                ready.set()

        def receive() -> None:
            _receive(connection, lambda message: loop.call_soon_threadsafe(hear, message))

        for work in (receive, lambda: _send(connection, self._messages)):
            Thread(target=work, daemon=True).start()
        await ready.wait()
        if not isinstance(first[0], Ready):
            await self._printed
            raise self.death("the engine ended before it was ready")
        return first[0]

    async def _read_lines(self) -> None:
        assert self._process.stdout is not None
        while True:
            try:
                line = await self._process.stdout.readline()
            except ValueError:  # longer than the stream's buffer, which is empty now
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            self._lines.append(text)
            self._echo(text)


def _family(process: int) -> list[int]:
    """A process and all that it started, as far as the system tells; the launcher's own are in other groups."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        children = []
    return [process, *(each for child in children for each in _family(int(child)))]


def _signal(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


def _accept(listener: Listener) -> Connection | None:
    try:
        return listener.accept()
    except (AuthenticationError, EOFError, OSError):
        return None


def _wake(address: str) -> None:
    """Let an `accept` that nobody will answer return."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as caller:
        caller.connect(address)


def _receive(connection: Connection, hear: Callable[[ToServer | None], object]) -> None:
    try:
        while True:
            hear(connection.recv())
    except (EOFError, OSError):
        pass
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
        hear(None)


def _send(connection: Connection, messages: "SimpleQueue[ToEngine | None]") -> None:
    with connection:
        while (message := messages.get()) is not None:
            try:
                connection.send(message)
            except OSError:
                return  # whoever receives notices
