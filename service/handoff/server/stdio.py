"""The service over standard input and output, for one client that starts it. Standard output carries protocol only."""

from mcp.server.stdio import stdio_server

from handoff.app import open_app
from handoff.jobs.runner import jobs_beside
from handoff.model import Caller
from handoff.server.protocol import build_server
from handoff.settings import Settings


async def serve_stdio(settings: Settings, caller: Caller) -> None:
    """Serve one client until it closes its side. There is no operations port: any number of clients may run one each."""
    async with open_app(settings) as app, jobs_beside(app), stdio_server() as (read, write):
        server = build_server(app, caller)
        await server.run(read, write, server.create_initialization_options())
