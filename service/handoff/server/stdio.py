"""Serves one client over standard input and output. Nothing but the protocol is written to standard output."""

import asyncio
from contextlib import suppress
from typing import Final

import anyio
from mcp.shared.message import SessionMessage

from handoff.context import App
from handoff.model import Caller
from handoff.server.protocol import build_server
from handoff.server.wire import Wire

_ANSWER_TIMEOUT_S: Final = 20  # for which the end waits for the calls in progress; longer than any of them takes


async def serve_stdio(app: App, caller: Caller, wire: Wire) -> None:
    """Serve the client until it closes its end or goes away, or until a signal. What was received is answered first."""
    server = build_server(app, caller)
    to_server, incoming = anyio.create_memory_object_stream[SessionMessage | Exception]()
    outgoing, from_server = anyio.create_memory_object_stream[SessionMessage]()

    async def receive() -> None:
        while (message := await wire.receive()) is not None:
            await to_server.send(SessionMessage(message))
        wire.ending.set()

    async def send() -> None:
        async for message in from_server:
            wire.send(message.message)

    async def end() -> None:
        await wire.ending.wait()
        receiving.cancel()
        app.wakeups.release()  # calls that wait return what there is
        with suppress(TimeoutError):
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                await wire.answered()
        await to_server.aclose()

    receiving = asyncio.create_task(receive())
    others = [asyncio.create_task(part) for part in (send(), end())]
    try:
        await server.run(incoming, outgoing, server.create_initialization_options())
        await others[0]
    finally:
        for task in (receiving, *others):
            task.cancel()
        await asyncio.gather(receiving, *others, return_exceptions=True)
