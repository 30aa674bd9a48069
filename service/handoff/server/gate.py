"""What is checked of a request before its token: Host, Origin, and whether the path is one of ours; and CORS.

Before a browser lets a page call, it asks, without the token (a preflight). The page can read only answers that allow it.
"""

from collections.abc import Sequence
from typing import Final

from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from starlette.types import Message, Scope, Send

from handoff.server.asgi import ALLOW_POST, Refusals, has_duplicates
from handoff.server.standards import Allowed, accepts, host_names
from handoff.settings import Settings

MCP_PATH: Final = "/mcp"
# The headers of MCP's transport, and those of traces. A tool's `mcp-param-…` headers are allowed if they are asked for.
_SENT: Final = (
    "authorization, content-type, accept, mcp-protocol-version, mcp-method, mcp-name, mcp-session-id, last-event-id, "
    "traceparent, tracestate, baggage"
)
_EXPOSED: Final = "mcp-session-id, mcp-protocol-version, www-authenticate, retry-after, allow"
PREFLIGHT_S: Final = 7_200  # for which a browser need not ask again: no browser keeps an answer for longer, except Firefox


# Where clients look for OAuth, beside /.well-known/oauth-… and /.well-known/openid-configuration.
_OAUTH_PATHS: Final = frozenset({"/register", "/authorize", "/token"})


class Gate:
    """Checks Host and Origin, and answers preflights."""

    def __init__(self, settings: Settings, refusals: Refusals) -> None:
        self._refusals = refusals
        self._hosts = Allowed(host_names(settings), settings.allowed_hosts)
        self._origins = Allowed(
            [f"{scheme}://{name}" for scheme in ("http", "https") for name in host_names(settings)],
            settings.allowed_origins,
        )

    def passes(self, scope: Scope, headers: dict[str, str]) -> bool:
        """Whether there is nothing to examine: no page of a browser sent it, and its Host is ours."""
        return (
            "origin" not in headers and len(headers) == len(scope["headers"]) and self._hosts.holds(headers.get("host", ""))
        )

    def readable(self, headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """The headers that let the page which sent these read an answer; none if no page of an allowed origin did."""
        origins = [value.decode("latin-1") for name, value in headers if name == b"origin"]
        return _readable_by(origins[0]) if len(origins) == 1 and self._origins.holds(origins[0]) else []

    async def examine(self, scope: Scope, send: Send, headers: dict[str, str]) -> tuple[Send, int | None]:
        """Check a request; return the `send` to answer it with, and the status if it has been answered."""
        if has_duplicates(scope["headers"]):
            return send, await self._refusals.refuse(
                scope,
                send,
                400,
                "header_twice",
                "A request can have only one Host, one Origin and one Authorization header. Send each once.",
            )
        if "origin" in headers:
            if not self._origins.holds(headers["origin"]):
                return send, await self._refusals.refuse(
                    scope,
                    send,
                    403,
                    "origin_not_allowed",
                    f"The Origin {_shown(headers['origin'])} may not call this service. "
                    "The operator can allow it with HANDOFF_ALLOWED_ORIGINS.",
                )
            send = _adding(_readable_by(headers["origin"]), send)
        if not self._hosts.holds(headers.get("host", "")):
            return send, await self._refusals.refuse(
                scope,
                send,
                421,
                "host_not_allowed",
                f"This service does not answer to the Host {_shown(headers.get('host', ''))}. "
                "The operator can allow it with HANDOFF_ALLOWED_HOSTS.",
            )
        is_preflight = scope["method"] == "OPTIONS" and "access-control-request-method" in headers
        if is_preflight and "origin" in headers:
            return send, await _answer_preflight(send, headers)
        return send, None

    async def refuse_path(self, scope: Scope, send: Send, *, needs_token: bool) -> int:
        """Refuse a path that is not ours; return the status. A client that looks for OAuth is told what to do instead."""
        path = scope["path"]
        if path.startswith(("/.well-known/oauth-", "/.well-known/openid-")) or path in _OAUTH_PATHS:
            if needs_token:
                return await self._refusals.refuse(
                    scope,
                    send,
                    404,
                    "no_oauth",
                    "This service does not use OAuth. Configure the client with a token from the operator of the service, "
                    f"to be sent to {MCP_PATH} as Authorization: Bearer TOKEN.",
                )
            return await self._refusals.refuse(
                scope,
                send,
                404,
                "no_oauth",
                f"This service uses neither OAuth nor tokens. Connect to {MCP_PATH} without authentication.",
            )
        return await self._refusals.refuse(
            scope,
            send,
            404,
            "not_found",
            f"There is nothing at this path. The MCP endpoint is {MCP_PATH}; /healthz and /readyz report the state.",
        )

    async def refuse_unsuited(self, scope: Scope, send: Send, headers: dict[str, str]) -> int | None:
        """Refuse a method that the current protocol does not have, or an Accept that does not allow the answer.

        Returns the status, or None if the request suits. The SDK refuses both without a word.
        """
        if scope["method"] != "POST":
            if headers.get("mcp-protocol-version") not in MODERN_PROTOCOL_VERSIONS:
                return None
            return await self._refusals.refuse(
                scope,
                send,
                405,
                "method_not_allowed",
                "Send requests of this protocol version with POST, each alone.",
                ALLOW_POST,
            )
        accept = next(value.decode("latin-1") for name, value in scope["headers"] if name == b"accept")
        media_type = "text/event-stream" if headers.get("mcp-method") == "subscriptions/listen" else "application/json"
        if accepts(accept, "application/json") and accepts(accept, media_type):
            return None
        return await self._refusals.refuse(
            scope,
            send,
            406,
            "not_acceptable",
            f"This is answered as {media_type}, and Accept is {_shown(accept)}. "
            "Send Accept: application/json, text/event-stream.",
        )


async def _answer_preflight(send: Send, headers: dict[str, str]) -> int:
    """Tell a browser what a page of an allowed origin may send; return the status."""
    asked = (name.strip().lower() for name in headers.get("access-control-request-headers", "").split(","))
    further = sorted({name for name in asked if name.startswith("mcp-param-") and name.replace("-", "").isalnum()})
    answer: list[tuple[bytes, bytes]] = [
        (b"access-control-allow-methods", b"GET, POST, DELETE"),
        (b"access-control-allow-headers", ", ".join((_SENT, *further)).encode("latin-1")),
        (b"access-control-max-age", b"%d" % PREFLIGHT_S),
    ]
    if headers.get("access-control-request-private-network") == "true":
        answer.append((b"access-control-allow-private-network", b"true"))
    await send({"type": "http.response.start", "status": 204, "headers": answer})
    await send({"type": "http.response.body", "body": b""})
    return 204


def _readable_by(origin: str) -> list[tuple[bytes, bytes]]:
    """The headers that let pages of an allowed origin read the answer, whatever its status."""
    return [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-expose-headers", _EXPOSED.encode()),
        (b"vary", b"Origin"),
    ]


def _adding(added: list[tuple[bytes, bytes]], send: Send) -> Send:
    """A `send` that adds headers to the answer."""

    async def send_more(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *added]}
        await send(message)

    return send_more


def _shown(value: str) -> str:
    return repr(value[:100])
