"""Serve the fixtures over HTTP, for the conformance suite: `python -m tests.conformance.serve PORT`.

The address is the first line on standard output, written once the socket takes connections.
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

# The edge answers the 2026-07-28 tool calls of the service without the SDK. With these the suite judges that path too;
# test_simple_text is the tool on which it tries out every fault that a header can have.
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
    """The fixtures behind the service's own edge, but with sessions and event streams, which the service does without.

    The scenarios need them. Up to 2025-11-25 the server asks the client: the question takes a stream, and its answer a
    session to find the way back by. Progress takes the stream at both revisions.
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
    """Serve on 127.0.0.1:`port` until SIGTERM; port 0 takes a free one."""
    with socket.create_server(("127.0.0.1", port), backlog=128) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}/mcp", flush=True)
        config = uvicorn.Config(app(), loop="uvloop", http="httptools", log_level="warning")
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main(int(sys.argv[1]))
