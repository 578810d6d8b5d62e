"""The client of a benchmark: one streamed completion over a connection of its own, and when its tokens came.

It speaks just enough HTTP/1.1 to do so, because what it computes is taken from the server beside it.
"""

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from superscaler.errors import ServingError


@dataclass(slots=True)
class Measured:
    """What a request was answered, in seconds on one clock."""

    sent: float
    tokens_at: list[float] = field(default_factory=list)
    """When something came."""
    ended: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    error: str = ""

    @property
    def first(self) -> float:
        """Until the first token."""
        return self.tokens_at[0] - self.sent

    @property
    def between(self) -> list[float]:
        """From each arrival to the next."""
        return [after - before for before, after in zip(self.tokens_at, self.tokens_at[1:], strict=False)]

    @property
    def whole(self) -> float:
        """Until the end."""
        return self.ended - self.sent

    @property
    def per_token(self) -> float:
        """For each token after the first."""
        return (self.whole - self.first) / (self.output_tokens - 1) if self.output_tokens > 1 else 0.0


class BenchClient:
    """Sends requests to one server.

    Args:
        url: Such as ``http://127.0.0.1:8000``.
        api_key: Empty: none.
    """

    def __init__(self, url: str, api_key: str = "") -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ServingError(f"{url!r} is no address of a server", remedy="write http://127.0.0.1:8000")
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._path = parts.path.rstrip("/")
        self._key = api_key

    async def get(self, path: str) -> bytes:
        """The body of an answer.

        Raises:
            ServingError: There is no server, or it answers with an error.
        """
        try:
            return b"".join([part async for part in self._exchange("GET", path, b"")])
        except (OSError, EOFError, ValueError) as error:
            if isinstance(error, ServingError):
                raise
            raise ServingError(
                f"no answer from {self._host}:{self._port}: {error}",
                remedy="start a server, such as `superscaler serve`, or say where it is with --url",
            ) from error

    async def complete(self, path: str, body: Mapping[str, Any]) -> Measured:
        """Ask for a stream, and measure it; what goes wrong is part of the result."""
        measured = Measured(time.perf_counter())
        try:
            await self._measure(path, json.dumps(body).encode(), measured)
        except (OSError, EOFError, ValueError, KeyError) as error:
            measured.error = f"{type(error).__name__}: {error}"
        measured.ended = measured.tokens_at[-1] if measured.tokens_at else time.perf_counter()
        return measured

    async def _measure(self, path: str, body: bytes, measured: Measured) -> None:
        rest, is_done = b"", False
        async for part in self._exchange("POST", path, body):
            now = time.perf_counter()
            *events, rest = (rest + part).split(b"\n\n")
            for event in events:
                said = event.removeprefix(b"data: ")
                if said == b"[DONE]":
                    is_done = True
                    continue
                found = json.loads(said)
                if "error" in found:
                    raise ServingError(found["error"]["message"])
                if found.get("choices"):
                    measured.tokens_at.append(now)
                if found.get("usage"):
                    measured.input_tokens = found["usage"]["prompt_tokens"]
                    measured.output_tokens = found["usage"]["completion_tokens"]
        if not is_done:
            raise ServingError("the stream broke off")

    async def _exchange(self, method: str, path: str, body: bytes) -> AsyncIterator[bytes]:
        """The parts of an answer's body, as they come."""
        reader, writer = await asyncio.open_connection(self._host, self._port, ssl=self._tls)
        try:
            head = [
                f"{method} {self._path}{path} HTTP/1.1",
                f"Host: {self._host}:{self._port}",
                "Content-Type: application/json",
                f"Content-Length: {len(body)}",
                "Connection: close",
            ]
            head += [f"Authorization: Bearer {self._key}"] if self._key else []
            writer.write("\r\n".join([*head, "", ""]).encode() + body)
            await writer.drain()
            status, headers = await _read_head(reader)
            parts = _chunks(reader) if headers.get("transfer-encoding") == "chunked" else _rest(reader)
            if status != 200:
                what = b"".join([part async for part in parts]).decode(errors="replace")
                raise ServingError(f"{method} {path} is answered with {status}: {what[:500]}")
            async for part in parts:
                yield part
        finally:
            writer.close()


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {}
    for line in filter(None, lines):
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip().lower()
    return int(first.split()[1]), headers


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int((await reader.readline()).split(b";")[0], 16):
        yield (await reader.readexactly(size + 2))[:-2]


async def _rest(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while part := await reader.read(1 << 16):
        yield part
