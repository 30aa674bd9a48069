"""The HTTP edge: one ASGI application around the SDK's.

Every request is checked here, once: Host, Origin, size, token. Nearly every request is a well-formed `tools/call` of the
protocol 2026-07-28. It is recognised (`common_call`) and answered here, at a quarter of the cost. Every other
request (another method, the older protocol, any fault) is passed on to the SDK. So only the SDK writes protocol errors.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from time import monotonic
from typing import Any, Final

import mcp_types as types
import orjson
import structlog
from mcp.server.lowlevel import Server
from mcp.server.transport_security import TransportSecuritySettings
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handoff.encoding import to_json
from handoff.model import Caller
from handoff.operations.alerts import Alerts
from handoff.server import ending
from handoff.server.asgi import (
    ALLOW_POST,
    CHALLENGE,
    CLOSE,
    JSON_DEPTH_MAX,
    Refusals,
    disconnected,
    excess,
    replay,
    respond,
)
from handoff.server.auth import Tokens
from handoff.server.bodies import Bodies, BodyRefused, RequestCutOff
from handoff.server.calls import ClientGone, Reply, UnknownTool
from handoff.server.common_call import common_call
from handoff.server.gate import MCP_PATH, Gate
from handoff.server.messages import answer_to
from handoff.server.notifications import Notifications
from handoff.server.record import JSONRPC_NAMES
from handoff.server.standards import normalised
from handoff.server.waiting import kept_alive, may_wait
from handoff.settings import Settings
from handoff.telemetry import metrics, spans
from handoff.telemetry.calls import Arrival, AttributeValue

log = structlog.get_logger(__name__)

metrics.HTTP_ROUTE.admit(MCP_PATH, "/healthz", "/readyz", "/alerts", "/watchdog")
CallTool = Callable[[Caller, str, dict[str, Any], Arrival, Callable[[], Awaitable[object]]], Awaitable[Reply]]
Pages = Callable[[Scope, Send, dict[str, str], bytes], Awaitable[int]]
Readiness = Callable[[], Awaitable[str | None]]

_ANYONE: Final = Caller()
_REFUSED: Final = 400  # the lowest status of a request that is refused
UI_PATH: Final = "/ui"
_FORM_BYTES_MAX: Final = 256 << 10  # the longest instructions, percent-encoded
JSON_VALUES_MAX: Final = 50_000  # names included; more would hold up the event loop for too long to parse
_TOO_DEEP: Final = to_json(  # worded as the SDK refuses JSON that it can't parse
    {"jsonrpc": "2.0", "id": None, "error": {"code": types.PARSE_ERROR, "message": "Parse error"}}
)


def _reason(status: int, answer: bytes) -> str:
    """Why the SDK has refused a request: the name of the JSON-RPC error in its answer or, without one, its status."""
    try:
        return JSONRPC_NAMES[orjson.loads(answer)["error"]["code"]]
    except (ValueError, KeyError, TypeError):
        return f"http_{status}"


def _about(scope: Scope, headers: Mapping[str, str]) -> dict[str, AttributeValue]:
    """The attributes of a request's span that OpenTelemetry's conventions recommend for servers."""
    about: dict[str, AttributeValue] = {
        "network.protocol.version": scope.get("http_version", ""),
        "url.scheme": scope.get("scheme", ""),
        "url.path": scope["path"],
    }
    name, colon, port = headers.get("host", "").rpartition(":")
    if colon and port.isascii() and port.isdigit():
        return {"server.address": name.strip("[]"), "server.port": int(port), **about}
    return {"server.address": f"{name}{colon}{port}".strip("[]"), **about}


class Edge:
    """The service as an ASGI application."""

    def __init__(
        self,
        server: Server[Any],
        settings: Settings,
        *,
        readiness: Readiness,
        tokens: Tokens | None = None,
        call_tool: CallTool | None = None,
        alerts: Alerts | None = None,
        pages: Pages | None = None,
        is_ending: Callable[[], bool] = lambda: False,
        stateless: bool = True,
        json_response: bool = True,
    ) -> None:
        self.refusals = Refusals()
        self._settings = settings
        self._tokens = tokens
        self._readiness = readiness
        self._is_ending = is_ending
        self._bodies = Bodies(settings)
        self._call_tool = call_tool
        self._pages = pages
        self._notifications = Notifications(alerts, self._bodies, self.refusals)
        self._gate = Gate(settings, self.refusals)
        self.readable = self._gate.readable  # for what is refused before it comes here
        # The edge has checked Host, Origin and size before the SDK sees a request.
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
        """Answer a request, and record how long that took."""
        if scope["type"] != "http":
            await self._sdk(scope, receive, send)
            return
        received = monotonic()
        status = 0
        if scope["path"].endswith("/"):  # /mcp/ is answered as /mcp
            scope["path"] = scope["path"].rstrip("/") or "/"
        try:
            status = await self._answer(scope, receive, send)
        finally:
            duration_s = monotonic() - received
            route = scope.get("handoff.route", scope["path"])
            metrics.HTTP_DURATION.record(duration_s, scope["method"], str(status), route)
            arrival: Arrival | None = scope.get("handoff.arrival")
            if arrival is not None and arrival.kept is not None and (tracer := spans.tracer()) is not None:
                method = metrics.HTTP_METHOD.allowed(scope["method"])
                tracer.export_http(arrival.kept, method, route, duration_s, _about(scope, arrival.headers or {}), status)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> int:
        """Answer a request; return the status that was sent, or 0 if none was."""
        # httptools leaves white space around header values, and the protocol compares them without it.
        headers = {name.decode("latin-1"): value.decode("latin-1").strip(" \t") for name, value in scope["headers"]}
        if not self._gate.passes(scope, headers):
            send, status = await self._gate.examine(scope, send, headers)
            if status is not None:
                return status
        if scope["path"] == "/healthz":
            return await respond(send, 200, to_json({"status": "alive"}))
        if scope["path"] == "/readyz":
            problem = await self._readiness()
            state = {"status": "ready"} if problem is None else {"status": "unready", "problem": problem}
            return await respond(send, 200 if problem is None else 503, to_json(state))
        is_notification = scope["path"] in self._notifications.paths
        if not is_notification and scope["path"] != MCP_PATH:
            if self._pages is not None and (scope["path"] == UI_PATH or scope["path"].startswith(f"{UI_PATH}/")):
                return await self._page(self._pages, scope, receive, send, headers)
            return await self._gate.refuse_path(scope, send, needs_token=self._tokens is not None)
        if is_notification and scope["method"] != "POST":
            return await self.refusals.refuse(
                scope,
                send,
                405,
                "method_not_allowed",
                "This path accepts only POST requests, from Alertmanager.",
                ALLOW_POST,
            )
        caller = self._caller(headers)
        if caller is None:
            return await self.refusals.refuse(
                scope,
                send,
                401,
                "unauthorized",
                "This request needs a bearer token that the service knows: send Authorization: Bearer TOKEN.",
                CHALLENGE,
            )
        if is_notification:
            return await self._notifications.answer(scope, receive, send, headers, caller)
        scope["handoff.caller"] = caller
        return await self._mcp(scope, receive, send, headers, caller)

    async def _page(self, pages: Pages, scope: Scope, receive: Receive, send: Send, headers: dict[str, str]) -> int:
        """Answer a request for a page, or a form that was sent from one; return the status."""
        if scope["method"] != "POST":
            return await pages(scope, send, headers, b"")
        try:
            body = await self._bodies.read(receive, headers, None, _FORM_BYTES_MAX)
        except RequestCutOff:
            return 0
        except BodyRefused as refused:
            return await self._bodies.refuse_body(
                self.refusals,
                scope,
                send,
                refused,
                f"The form has more than {_FORM_BYTES_MAX} bytes. Shorten its texts.",
            )
        try:
            return await pages(scope, send, headers, body)
        finally:
            self._bodies.give_back(len(body), None)

    async def _mcp(self, scope: Scope, receive: Receive, send: Send, headers: dict[str, str], caller: Caller) -> int:
        try:
            body = await self._bodies.read(receive, headers, caller.agent, self._settings.body_bytes_max)
        except RequestCutOff:  # an unfinished request must not take effect
            return 0
        except BodyRefused as refused:
            return await self._bodies.refuse_body(
                self.refusals,
                scope,
                send,
                refused,
                f"The request has more than {self._settings.body_bytes_max} bytes. Split it over several calls.",
            )
        try:
            if may_wait(body, headers.get("accept", "")):
                async with kept_alive(send) as send_alive:
                    return await self._answer_or_end(scope, receive, send_alive, headers, caller, body)
            return await self._answer_or_end(scope, receive, send, headers, caller, body)
        finally:
            self._bodies.give_back(len(body), caller.agent)

    async def _answer_or_end(
        self, scope: Scope, receive: Receive, send: Send, headers: dict[str, str], caller: Caller, body: bytes
    ) -> int:
        try:
            return await self._answer_mcp(scope, receive, send, headers, caller, body)
        except asyncio.CancelledError:  # the service stops, and has waited for this call long enough
            if not self._is_ending() or "handoff.status" in scope or (response := ending.answer(body)) is None:
                raise
            return await respond(send, 200, response, CLOSE)

    async def _answer_mcp(
        self, scope: Scope, receive: Receive, send: Send, headers: dict[str, str], caller: Caller, body: bytes
    ) -> int:
        # How long the client took to send it is not the call's time.
        arrival = scope["handoff.arrival"] = Arrival(monotonic(), None, headers, len(body))
        if (refused := await self._refuse_excess(scope, send, body)) is not None:
            return refused
        request = common_call(scope["method"], headers, len(scope["headers"]), body)
        if request is not None and self._call_tool is not None:
            params = request["params"]
            arrival.meta, arrival.request_id = params["_meta"], request["id"]
            try:
                reply = await self._call_tool(
                    caller, params["name"], params.get("arguments") or {}, arrival, partial(disconnected, receive)
                )
            except ClientGone:
                return 0
            except UnknownTool:
                pass
            else:
                scope["handoff.status"] = 200
                return await respond(send, 200, self._envelope(request["id"], reply))
        if scope["method"] == "POST" and (answer := answer_to(body, headers.get("mcp-protocol-version", ""))) is not None:
            reason = _reason(*answer) if answer[0] >= _REFUSED else "invalid_params"
            self.refusals.count(reason, status=answer[0], path=MCP_PATH)
            return await respond(send, *answer)
        scope["headers"] = normalised(scope["headers"])
        if (refused := await self._gate.refuse_unsuited(scope, send, headers)) is not None:
            return refused
        return await self._by_sdk(scope, receive, send, body, arrival)

    async def _by_sdk(self, scope: Scope, receive: Receive, send: Send, body: bytes, arrival: Arrival) -> int:
        """Let the SDK answer a request; return the status, or 0 if none was sent."""
        scope["handoff.gone"] = partial(disconnected, receive)
        status, answer = 0, b""

        async def send_noting_status(message: Message) -> None:
            nonlocal status, answer
            if message["type"] == "http.response.start":
                status = scope["handoff.status"] = message["status"]
            elif status >= _REFUSED and not answer:
                answer = message.get("body", b"")
            await send(message)

        await self._sdk(scope, replay(body, receive), send_noting_status)
        if status >= _REFUSED and not arrival.has_ended:  # it never became a call, so nothing else records it
            self.refusals.count(_reason(status, answer), status=status, path=MCP_PATH)
        return status

    def _caller(self, headers: dict[str, str]) -> Caller | None:
        if self._tokens is None:
            return _ANYONE
        kind, _, token = headers.get("authorization", "").partition(" ")
        return self._tokens.caller(token.strip().encode("latin-1")) if kind.lower() == "bearer" else None

    def _envelope(self, request_id: str | int, reply: Reply) -> bytes:
        """The JSON-RPC response that contains a reply, which is JSON already."""
        text = orjson.dumps(reply.body.decode())
        structured = b"" if reply.is_error else b',"structuredContent":' + reply.body
        return b'{"jsonrpc":"2.0","id":%s,"result":{"content":[{"type":"text","text":%s}]%s%s' % (
            orjson.dumps(request_id),
            text,
            structured,
            self._end[reply.is_error],
        )

    async def _refuse_excess(self, scope: Scope, send: Send, body: bytes) -> int | None:
        """Refuse a body that would cost too much to parse; return the status, or None if there is no reason to."""
        too_much = excess(body, values_max=JSON_VALUES_MAX, levels_max=JSON_DEPTH_MAX)
        if too_much is None:
            return None
        if too_much == "levels":
            self.refusals.count("parse_error", path=scope["path"])
            return await respond(send, 400, _TOO_DEEP)
        return await self.refusals.refuse(
            scope,
            send,
            413,
            "too_many_values",
            f"The request has more than {JSON_VALUES_MAX} JSON values. Split it over several calls.",
        )
