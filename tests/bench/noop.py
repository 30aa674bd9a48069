"""The baseline: a no-op tool of a plain MCPServer, stateless, with JSON responses, on uvloop."""

import sys

import uvicorn
from mcp.server import MCPServer

server = MCPServer("noop", log_level="ERROR")


@server.tool()
async def noop(text: str) -> str:
    """Do nothing."""
    return "ok"


if __name__ == "__main__":
    uvicorn.run(
        server.streamable_http_app(json_response=True, stateless_http=True),
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="error",
    )
