"""Event streams: answers that are sent as they come, and what is done when nobody waits for them any more."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from superscaler.runtime.serving.server.api_error import as_api_error

DONE = b"data: [DONE]\n\n"
Result = TypeVar("Result")


class ClientGone(Exception):
    """Whoever asked has closed the connection."""


def event(what: dict[str, Any]) -> bytes:
    """One event."""
    return b"data: " + json.dumps(what, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def while_connected(receive: Receive, work: Awaitable[Result]) -> Result:
    """The result of some work, which is cancelled when whoever asked is gone.

    Raises:
        ClientGone: They are.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Sends events as they come; an error after the first of them is an event, too.

    Args:
        events: What is sent; closed at the end, however it comes.
        deadline: On the event loop's clock, after which the rest is given up.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], deadline: float) -> None:
        self._events, self._deadline = events, deadline
        self.status_code, self.background = 200, None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all."""
        async with aclosing(self._events):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            with suppress(ClientGone):  # nobody is there to be told
                await while_connected(receive, self._send_events(send))

    async def _send_events(self, send: Send) -> None:
        try:
            async with asyncio.timeout_at(self._deadline):
                async for chunk in self._events:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except Exception as error:
            await send(
                {
                    "type": "http.response.body",
                    "body": event(as_api_error(error).body()) + DONE,
                    "more_body": True,
                }
            )
        await send({"type": "http.response.body", "body": b"", "more_body": False})
