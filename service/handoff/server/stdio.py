"""Serves one client over standard input and output. Nothing but the protocol is written to standard output."""

import asyncio
from contextlib import suppress
from typing import Any, Final

import anyio
import mcp_types as types
from mcp.shared.message import SessionMessage

from handoff.context import App
from handoff.model import Caller
from handoff.server.channel import CAPABILITY, announce, takes_channel
from handoff.server.protocol import build_server
from handoff.server.wire import Wire

_ANSWER_TIMEOUT_S: Final = 20  # for which the end waits for the calls in progress; longer than any of them takes


async def serve_stdio(app: App, caller: Caller, wire: Wire) -> None:
    """Serve the client until it closes its end or goes away, or until a signal. What was received is answered first."""
    server = build_server(app, caller)
    to_server, incoming = anyio.create_memory_object_stream[SessionMessage | Exception]()
    outgoing, from_server = anyio.create_memory_object_stream[SessionMessage]()

    async def receive() -> None:
        announced_to: str | None = None
        while (message := await wire.receive()) is not None:
            await to_server.send(SessionMessage(message))
            if isinstance(message, types.JSONRPCRequest) and message.method == "initialize":
                announced_to = caller.agent if takes_channel(message.params) else None
            elif announced_to is not None and isinstance(message, types.JSONRPCNotification):  # it is initialized
                others.append(asyncio.create_task(announce(app, announced_to, wire.send)))
                announced_to = None
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
        channel = {CAPABILITY: dict[str, Any]()} if caller.agent is not None else None
        await server.run(incoming, outgoing, server.create_initialization_options(experimental_capabilities=channel))
        await others[0]
    finally:
        for task in (receiving, *others):
            task.cancel()
        await asyncio.gather(receiving, *others, return_exceptions=True)
