"""Serves one client over standard input and output. Nothing but the protocol is written to standard output."""

from mcp.server.stdio import stdio_server

from handoff.context import App
from handoff.model import Caller
from handoff.server.protocol import build_server


async def serve_stdio(app: App, caller: Caller) -> None:
    """Serve the client until it closes its end."""
    async with stdio_server() as (read, write):
        server = build_server(app, caller)
        await server.run(read, write, server.create_initialization_options())
