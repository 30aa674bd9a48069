"""Serves the fixtures over HTTP for the conformance suite: `python -m tests.conformance.serve PORT`.

The first line of standard output is the address, written once the socket accepts connections.
"""

import socket
import sys
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp

from handoff.model import Caller
from handoff.server.calls import Reply, UnknownTool
from handoff.server.edge import Edge
from handoff.settings import Settings
from handoff.telemetry.calls import Arrival
from tests.conformance.fixtures import fixture_server

# The edge answers 2026-07-28 tool calls without the SDK, and these replies let the suite test that path too. On
# test_simple_text it tries every invalid header.
REPLIES: Final = {
    "test_simple_text": Reply(b'{"text":"This is a simple text response for testing."}', is_error=False),
    "test_error_handling": Reply(b'{"error":"This tool intentionally returns an error for testing"}', is_error=True),
}


async def _call_tool(_: Caller, name: str, __: dict[str, Any], ___: Arrival, ____: object) -> Reply:
    if name not in REPLIES:
        raise UnknownTool(name)
    return REPLIES[name]


async def _ready() -> None:
    return None


def app() -> ASGIApp:
    """Return the fixtures behind the service's own edge, with sessions and event streams, which the service does not use.

    The scenarios need them. Up to 2025-11-25 a server's question to the client requires a stream, and the answer requires a
    session. Progress notifications require a stream in both revisions.
    """
    return Edge(
        fixture_server(),
        Settings(),
        readiness=_ready,
        call_tool=_call_tool,
        stateless=False,
        json_response=False,
    )


def main(port: int) -> None:
    """Serve on 127.0.0.1:`port` until SIGTERM; port 0 picks a free one."""
    with socket.create_server(("127.0.0.1", port), backlog=128) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}/mcp", flush=True)
        config = uvicorn.Config(app(), loop="uvloop", http="httptools", log_level="warning")
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main(int(sys.argv[1]))
