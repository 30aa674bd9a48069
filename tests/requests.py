"""Raw JSON-RPC over HTTP, for requests that a well-behaved client would not send."""

from typing import Any

import httpx2

PROTOCOL = "2026-07-28"
META = {
    "io.modelcontextprotocol/protocolVersion": PROTOCOL,
    "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


def headers(method: str, name: str | None = None, **more: str) -> dict[str, str]:
    """Return the headers of a request in the current protocol."""
    named = {"mcp-name": name} if name is not None else {}
    return {
        "content-type": "application/json",
        "accept": "application/json, text/event-stream",
        "mcp-protocol-version": PROTOCOL,
        "mcp-method": method,
        **named,
        **more,
    }


def body(method: str, **params: Any) -> dict[str, Any]:
    """Return a JSON-RPC request in the current protocol."""
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": META}}


async def call(client: httpx2.AsyncClient, tool: str, arguments: Any, **more: str) -> httpx2.Response:
    """Send a tool call with POST."""
    request = body("tools/call", name=tool, arguments=arguments)
    return await client.post("/mcp", json=request, headers=headers("tools/call", tool, **more))
