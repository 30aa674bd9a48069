"""A tool call over HTTP with the standard library alone, for commands that start quickly or live long in little memory."""

import json
import re
from typing import Any, Final

from handoff import __version__

_PROTOCOL: Final = "2026-07-28"


class Away(Exception):
    """The service does not answer."""


class Refused(Exception):
    """The service refuses a call. The message says why, and what to do."""

    def __init__(self, code: str, message: str, *, is_retryable: bool = False) -> None:
        super().__init__(message)
        self.code, self.is_retryable = code, is_retryable


class Service:
    """The service, called as an agent. `timeout_s` limits each step of a call."""

    def __init__(self, url: str, agent: str | None, token: str | None, timeout_s: float) -> None:
        self._url, self.agent, self._token, self._timeout_s = url, agent, token, timeout_s

    def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool. Raises Away and Refused."""
        if self.agent is not None:
            arguments["agent"] = self.agent
        meta = {
            "io.modelcontextprotocol/protocolVersion": _PROTOCOL,
            "io.modelcontextprotocol/clientInfo": {"name": "handoff", "version": __version__},
            "io.modelcontextprotocol/clientCapabilities": {},
        }
        params = {"name": tool, "arguments": arguments, "_meta": meta}
        answer = self._posted(tool, {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
        if "result" not in answer:
            error = answer.get("error")
            raise Refused("refused", str(error.get("message") if isinstance(error, dict) else error))
        result = answer["result"]
        if result.get("isError"):
            error = json.loads(result["content"][0]["text"])["error"]
            raise Refused(error["code"], f"{error['message']} {error['try']}", is_retryable=error["retryable"])
        return result["structuredContent"]

    def _posted(self, tool: str, request: dict[str, Any]) -> dict[str, Any]:
        body = json.dumps(request).encode()
        scheme, _, rest = self._url.partition("://")
        authority, _, path = rest.partition("/")
        host, _, port = authority.rpartition(":") if re.search(r":\d+$", authority) else (authority, "", "")
        head = {
            "host": authority,
            "content-type": "application/json",
            "accept": "application/json, text/event-stream",
            "mcp-protocol-version": _PROTOCOL,
            "mcp-method": "tools/call",
            "mcp-name": tool,
            "content-length": str(len(body)),
            **({"authorization": f"Bearer {self._token}"} if self._token else {}),
        }
        lines = [f"POST /{path} HTTP/1.0", *(f"{name}: {value}" for name, value in head.items())]
        usual_port = 443 if scheme == "https" else 80
        sent = "\r\n".join([*lines, "", ""]).encode() + body
        received = _exchanged(scheme, (host.strip("[]"), int(port or usual_port)), sent, self._timeout_s)
        _, _, answer = received.partition(b"\r\n\r\n")
        try:
            return json.loads(answer)
        except ValueError:
            status = received.split(b"\r\n", 1)[0].decode("latin-1")
            raise Refused("refused", f"{self._url} answered {status[:100]!r}.") from None


def _exchanged(scheme: str, address: tuple[str, int], request: bytes, timeout_s: float) -> bytes:
    """Send a request of HTTP/1.0, after whose answer the server ends the connection. Raises Away."""
    import socket  # http.client would take twice as long to load as all of the rest

    try:
        connection = socket.create_connection(address, timeout=timeout_s)
        if scheme == "https":
            import ssl

            connection = ssl.create_default_context().wrap_socket(connection, server_hostname=address[0])
        with connection:
            connection.sendall(request)
            received = bytearray()
            while part := connection.recv(65_536):
                received += part
    except OSError as error:
        raise Away from error
    if not received:
        raise Away
    return bytes(received)
