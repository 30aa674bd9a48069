"""The HTTP edge: one ASGI application around the SDK's.

Every request is checked here, once: Host, Origin, size, token. A well-formed 2026-07-28 `tools/call`, which is nearly all
there is, is classified by the SDK's own function and answered here; whatever is unusual about a request (another method,
the older protocol, any fault) sends it on to the SDK, which answers it as it answers everybody. So there is one place
that knows the protocol's errors, and the common call costs a quarter of what it would.
"""

import asyncio
import gc
import signal
import socket
from collections.abc import Awaitable, Callable, Generator, Iterable
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from time import monotonic
from typing import Any, Final, cast

import mcp_types as types
import orjson
import structlog
import uvicorn
from mcp.server.lowlevel import Server
from mcp.server.transport_security import TransportSecuritySettings
from mcp.shared.inbound import InboundModernRoute, classify_inbound_request
from mcp_types.methods import validate_client_request
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handoff.app import open_app
from handoff.encoding import to_json
from handoff.errors import HandoffError, Unavailable
from handoff.jobs.runner import jobs_beside
from handoff.model import Caller
from handoff.operations.alerts import BODY_BYTES_MAX, Alerts
from handoff.operations.port import Operations
from handoff.server.auth import Tokens
from handoff.server.catalog import WAITING_TOOLS
from handoff.server.protocol import Reply, UnknownTool, build_server, call_tool, unless
from handoff.settings import Settings
from handoff.telemetry import metrics
from handoff.telemetry.spans import Arrival

log = structlog.get_logger(__name__)

MCP_PATH: Final = "/mcp"
_GRACE_S: Final = 5  # what a stop waits for calls that are under way
CallTool = Callable[[Caller, str, dict[str, Any], Arrival], Awaitable[Reply]]
Unready = Callable[[], Awaitable[str | None]]

_JSON: Final = (b"content-type", b"application/json")
_ONCE: Final = frozenset({b"host", b"origin", b"authorization"})  # what is checked must be all that there is
_DIGITS_ALIKE: Final = bytes.maketrans(b"123456789", b"000000000")
_TWENTY_DIGITS: Final = b"0" * 20  # an integer of fewer has 64 bits
_ANYONE: Final = Caller()


async def serve(
    settings: Settings,
    listener: socket.socket,
    ready: Callable[[], None] | None = None,
    operations: Operations | None = None,
) -> None:
    """Serve on a bound socket until SIGINT, SIGTERM or SIGHUP; `ready` is called when the first request can be answered."""
    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(open_app(settings, operations=operations.address if operations else None))
        await stack.enter_async_context(jobs_beside(app))
        if operations is not None:
            stack.enter_context(operations.serving(app))
        server = build_server(app)
        edge = Edge(
            server, settings, unready=app.unready, tokens=app.tokens, call_tool=partial(call_tool, app), alerts=app.alerts
        )
        config = uvicorn.Config(
            edge,
            http="httptools",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nothing here looks at the client's address
            timeout_keep_alive=75,
            timeout_graceful_shutdown=_GRACE_S,
        )
        await _Server(config, ready, app.wakeups.release).serve(sockets=[listener])


class _Server(uvicorn.Server):
    """uvicorn that lets go of those who wait before it waits for them, and that ends a signal where it arrives."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None] | None, release: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready
        self._release = release

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        _settle_memory()
        if self._ready is not None:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._release()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        loop = asyncio.get_running_loop()
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(name) != signal.SIG_IGN:  # nohup
                loop.add_signal_handler(name, self.handle_exit, name, None)
        yield


def _settle_memory() -> None:
    """What a start has made stays until the end: the collector need not look at it again and again (a tenth of a call)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


class Edge:
    """The service as an ASGI application."""

    def __init__(
        self,
        server: Server[Any],
        settings: Settings,
        *,
        unready: Unready,
        tokens: Tokens | None = None,
        call_tool: CallTool | None = None,
        alerts: Alerts | None = None,
        stateless: bool = True,
        json_response: bool = True,
    ) -> None:
        self._settings = settings
        self._tokens = tokens
        self._unready = unready
        self._call_tool = call_tool
        self._notified = {} if alerts is None else {"/alerts": alerts.take, "/watchdog": alerts.heartbeat}
        self._hosts = _Allowed(_host_names(settings), settings.allowed_hosts)
        self._origins = _Allowed(
            [f"{scheme}://{name}" for scheme in ("http", "https") for name in _host_names(settings)],
            settings.allowed_origins,
        )
        # Host and Origin were checked before the SDK sees a request, and bodies were bounded.
        self._sdk: ASGIApp = server.streamable_http_app(
            streamable_http_path=MCP_PATH,
            json_response=json_response,
            stateless_http=stateless,
            max_request_body_size=settings.body_bytes_max,
            transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
        )
        stamp = to_json({types.SERVER_INFO_META_KEY: server.server_info_stamp})
        self._end = {
            is_error: b',"isError":%s,"resultType":"complete","_meta":%s}}' % (flag, stamp)
            for is_error, flag in ((True, b"true"), (False, b"false"))
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._sdk(scope, receive, send)
            return
        received = monotonic()
        status = 0
        try:
            status = await self._answer(scope, receive, send, received)
        finally:
            metrics.HTTP_DURATION.record(monotonic() - received, scope["method"], str(status), scope["path"])

    async def _answer(self, scope: Scope, receive: Receive, send: Send, received: float) -> int:
        """Answer a request; the status that was sent, or 0 if none was."""
        # httptools leaves the padding around header values; the protocol compares them without it.
        scope["headers"] = raw = [(name, value.strip(b" \t")) for name, value in scope["headers"]]
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in raw}
        if len(headers) != len(raw) and _stands_twice(raw):
            return await _refuse(send, 400, "header_twice", "Host, Origin and Authorization may each stand once.")
        if not self._hosts.holds(headers.get("host", "")):
            return await _refuse(
                send, 421, "host_not_allowed", "This Host is not served here; HANDOFF_ALLOWED_HOSTS adds one."
            )
        if "origin" in headers and not self._origins.holds(headers["origin"]):
            return await _refuse(
                send, 403, "origin_not_allowed", "This Origin may not call; HANDOFF_ALLOWED_ORIGINS adds one."
            )
        if scope["path"] == "/healthz":
            return await _respond(send, 200, to_json({"status": "alive"}))
        if scope["path"] == "/readyz":
            problem = await self._unready()
            status = {"status": "ready"} if problem is None else {"status": "unready", "problem": problem}
            return await _respond(send, 200 if problem is None else 503, to_json(status))
        if scope["path"] in self._notified:
            return await self._notification(scope, receive, send, headers)
        if scope["path"] != MCP_PATH:
            return await _refuse(
                send, 404, "not_found", f"The MCP endpoint is {MCP_PATH}; /healthz and /readyz tell the state."
            )
        caller = self._caller(headers)
        if caller is None:
            return await _refuse(send, 401, "unauthorized", "A bearer token that this service knows is needed.", _CHALLENGE)
        scope["handoff.caller"], scope["handoff.received"], scope["handoff.headers"] = caller, received, headers
        return await self._mcp(scope, receive, send, headers, caller, received)

    async def _notification(self, scope: Scope, receive: Receive, send: Send, headers: dict[str, str]) -> int:
        """Alertmanager tells something; it is answered once that is stored."""
        if scope["method"] != "POST":
            return await _refuse(send, 405, "method_not_allowed", "Alertmanager POSTs here.", _POST)
        caller = self._caller(headers)
        if caller is None:
            return await _refuse(send, 401, "unauthorized", "A bearer token that this service knows is needed.", _CHALLENGE)
        if "alerts" not in caller.scopes:
            return await _refuse(send, 403, "scope_missing", "This token lacks the scope alerts.")
        try:
            body = await _read(receive, headers, BODY_BYTES_MAX)
        except _Gone:
            return 0
        if body is None:
            return await _refuse(send, 413, "body_too_large", f"A notification may have {BODY_BYTES_MAX} bytes.", _CLOSE)
        try:
            stored = await self._notified[scope["path"]](body)
        except Unavailable as error:
            return await _respond(send, 503, to_json({"error": error.as_dict()}), _LATER)
        except HandoffError as error:
            return await _refuse(send, 400, error.code, f"{error.message} {error.hint}")
        except Exception:
            log.exception("alert.failed", path=scope["path"])
            return await _respond(send, 500, to_json({"error": {"code": "internal", "message": "It was not stored."}}))
        return await _respond(send, 200, to_json({"stored": stored}))

    async def _mcp(
        self, scope: Scope, receive: Receive, send: Send, headers: dict[str, str], caller: Caller, received: float
    ) -> int:
        try:
            body = await _read(receive, headers, self._settings.body_bytes_max)
        except _Gone:  # what was left unfinished is not to be done
            return 0
        if body is None:
            return await _refuse(
                send, 413, "body_too_large", f"A request may have {self._settings.body_bytes_max} bytes.", _CLOSE
            )
        request = self._common_call(scope, headers, body)
        if request is not None and self._call_tool is not None:
            params = request["params"]
            arrival = Arrival(received, params["_meta"], headers, len(body))
            call = self._call_tool(caller, params["name"], params.get("arguments") or {}, arrival)
            try:
                # A call that waits must end when its client goes away; one that writes must not be torn apart.
                if params["name"] in WAITING_TOOLS:
                    reply = await unless(_disconnected(receive), call)
                else:
                    reply = await call
            except UnknownTool:
                pass
            else:
                return await _respond(send, 200, self._envelope(request["id"], reply))
        scope["handoff.size"] = len(body)
        scope["handoff.gone"] = partial(_disconnected, receive)
        status = 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        await self._sdk(scope, _replay(body, receive), noting)
        return status

    def _caller(self, headers: dict[str, str]) -> Caller | None:
        if self._tokens is None:
            return _ANYONE
        kind, _, token = headers.get("authorization", "").partition(" ")
        return self._tokens.caller(token.strip().encode("latin-1")) if kind.lower() == "bearer" else None

    def _common_call(self, scope: Scope, headers: dict[str, str], body: bytes) -> dict[str, Any] | None:
        """The request, if it is a well-formed tool call of the current protocol, and None if the SDK is to look at it."""
        if (
            headers.get("mcp-method") != "tools/call"
            or scope["method"] != "POST"
            or headers.get("mcp-protocol-version") not in MODERN_PROTOCOL_VERSIONS
            or not headers.get("content-type", "").startswith("application/json")
            or not _accepts_json(headers.get("accept", ""))
        ):
            return None
        if b"metadata" in body and _TWENTY_DIGITS in body.translate(_DIGITS_ALIKE):
            return None  # perhaps an integer above 64 bits: orjson would round it, the SDK's parser does not
        try:
            request = orjson.loads(body)
        except orjson.JSONDecodeError:
            return None
        if not isinstance(request, dict) or request.get("jsonrpc") != "2.0" or request.get("method") != "tools/call":
            return None
        if type(request.get("id")) not in (str, int) or len(headers) != len(scope["headers"]):  # a header stands twice
            return None
        if not isinstance(classify_inbound_request(request, headers=headers), InboundModernRoute):
            return None
        params = cast("dict[str, Any]", request["params"])
        try:
            validate_client_request("tools/call", headers["mcp-protocol-version"], params)
        except ValidationError:
            return None
        return request

    def _envelope(self, request_id: str | int, reply: Reply) -> bytes:
        """The JSON-RPC response around a reply whose JSON is there already."""
        text = orjson.dumps(reply.body.decode())
        structured = b"" if reply.is_error else b',"structuredContent":' + reply.body
        return b'{"jsonrpc":"2.0","id":%s,"result":{"content":[{"type":"text","text":%s}]%s%s' % (
            orjson.dumps(request_id),
            text,
            structured,
            self._end[reply.is_error],
        )


class _Allowed:
    """Names that may be called by, with any port or none, and further ones exactly as given."""

    def __init__(self, names: Iterable[str], exact: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._exact = frozenset(exact)

    def holds(self, value: str) -> bool:
        if value in self._names or value in self._exact:
            return True
        name, _, port = value.rpartition(":")
        return name in self._names and port.isascii() and port.isdigit()


def _host_names(settings: Settings) -> list[str]:
    names = ["127.0.0.1", "localhost", "[::1]"]
    return names if settings.is_loopback else [*names, f"[{settings.host}]" if ":" in settings.host else settings.host]


def _stands_twice(headers: list[tuple[bytes, bytes]]) -> bool:
    names = [name for name, _ in headers if name in _ONCE]
    return len(names) != len(set(names))


def _accepts_json(accept: str) -> bool:
    return "application/json" in accept or "*/*" in accept


class _Gone(Exception):
    """The client went away in the middle of its request."""


async def _read(receive: Receive, headers: dict[str, str], bytes_max: int) -> bytes | None:
    """The request's body; None when it is too large, without reading more of it than `bytes_max`. Raises _Gone."""
    length = headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length) > bytes_max:
        return None
    message = await _part(receive)
    body: bytes = message.get("body", b"")
    if message.get("more_body", False):
        chunks = bytearray(body)
        while message.get("more_body", False) and len(chunks) <= bytes_max:
            message = await _part(receive)
            chunks += message.get("body", b"")
        body = bytes(chunks)
    return body if len(body) <= bytes_max else None


async def _part(receive: Receive) -> Message:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise _Gone
    return message


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once more, and then what comes."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _respond(send: Send, status: int, body: bytes, further: tuple[tuple[bytes, bytes], ...] = ()) -> int:
    headers = [_JSON, (b"content-length", b"%d" % len(body)), *further]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
    return status


_CHALLENGE: Final = ((b"www-authenticate", b'Bearer realm="handoff"'),)
_POST: Final = ((b"allow", b"POST"),)
_LATER: Final = ((b"retry-after", b"5"),)
_CLOSE: Final = ((b"connection", b"close"),)


async def _refuse(send: Send, status: int, code: str, message: str, further: tuple[tuple[bytes, bytes], ...] = ()) -> int:
    metrics.REFUSALS.add(1, code)
    return await _respond(send, status, to_json({"error": {"code": code, "message": message}}), further)
