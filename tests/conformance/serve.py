"""Serve the fixtures over HTTP, for the conformance suite: `python -m tests.conformance.serve PORT`.

The address is the first line on standard output, written once the socket takes connections.
"""

import socket
import sys

import uvicorn
from handoff.http import Edge
from handoff.settings import Settings
from starlette.types import ASGIApp

from tests.conformance.fixtures import fixture_server


async def _ready() -> None:
    return None


def app() -> ASGIApp:
    """The fixtures behind the service's own edge, but with sessions and event streams, which the service does without.

    The scenarios need them: up to 2025-11-25 the server asks the client, which takes a session to route the answer and a
    stream to carry the question; progress, in both revisions, takes the stream.
    """
    return Edge(fixture_server(), Settings(), unready=_ready, stateless=False, json_response=False)


def main(port: int) -> None:
    """Serve on 127.0.0.1:`port` until SIGTERM; port 0 takes a free one."""
    with socket.create_server(("127.0.0.1", port), backlog=128) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}/mcp", flush=True)
        config = uvicorn.Config(app(), loop="uvloop", http="httptools", log_level="warning")
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main(int(sys.argv[1]))
