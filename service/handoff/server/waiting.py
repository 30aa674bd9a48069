"""Keeps the response to a waiting call alive: proxies and gateways cut one off that is silent for 30 to 60 seconds."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from starlette.types import Message, Send

KEEP_ALIVE_S: Final = 10.0  # half of the shortest idle timeout that is in use, and some more for a slow network
_STREAM: Final = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),  # nginx would keep the comments back
)


def may_wait(body: bytes, accept: str) -> bool:
    """Whether a request may be one that waits, of a client that takes its answer as a stream of events."""
    return b"wait_seconds" in body and "text/event-stream" in accept.lower()


@asynccontextmanager
async def kept_alive(send: Send) -> AsyncGenerator[Send]:
    """Give a `send` whose response becomes a stream of events, with a comment every KEEP_ALIVE_S, if it takes longer.

    Its one event is then the JSON that would have been the body.
    """
    writing = asyncio.Lock()
    is_answered = is_stream = False
    parts: list[bytes] = []

    async def comment() -> None:
        nonlocal is_stream
        while True:
            await asyncio.sleep(KEEP_ALIVE_S)
            async with writing:
                if is_answered:
                    return
                if not is_stream:
                    is_stream = True
                    await send({"type": "http.response.start", "status": 200, "headers": [*_STREAM]})
                await send({"type": "http.response.body", "body": b": ping\r\n\r\n", "more_body": True})

    async def answer(message: Message) -> None:
        nonlocal is_answered
        async with writing:
            is_answered = True
        if not is_stream:
            await send(message)
        elif message["type"] == "http.response.body":
            parts.append(message.get("body", b""))
            if not message.get("more_body"):
                data = b"".join(parts).replace(b"\n", b"\ndata: ")
                await send({"type": "http.response.body", "body": b"event: message\r\ndata: %s\r\n\r\n" % data})

    commenting = asyncio.create_task(comment())
    try:
        yield answer
    finally:
        commenting.cancel()
