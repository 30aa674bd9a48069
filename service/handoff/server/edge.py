"""The HTTP edge: one ASGI application around the SDK's.

Every request is checked here, once: Host, Origin, size, token. Nearly every request is a well-formed `tools/call` of the
protocol 2026-07-28. It is classified by the SDK's own function and answered here, at a quarter of the cost. Every other
request (another method, the older protocol, any fault) is passed on to the SDK. So only the SDK writes protocol errors.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from time import monotonic
from typing import Any, Final

import mcp_types as types
import orjson
import structlog
from mcp.server.lowlevel import Server
from mcp.server.transport_security import TransportSecuritySettings
from mcp.shared.inbound import InboundModernRoute, classify_inbound_request
from mcp_types.methods import CLIENT_REQUESTS
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handoff.encoding import to_json
from handoff.errors import HandoffError, Unavailable
from handoff.model import Caller
from handoff.operations.alerts import BODY_BYTES_MAX, VALUES_MAX, Alerts
from handoff.server import ending
from handoff.server.asgi import (
    ALLOW_POST,
    CHALLENGE,
    CLOSE,
    RETRY_LATER,
    Allowed,
    accepts_json,
    disconnected,
    excess,
    has_duplicates,
    host_names,
    refuse,
    replay,
    respond,
)
from handoff.server.auth import Tokens
from handoff.server.bodies import Bodies, BodyRefused, RequestCutOff
from handoff.server.calls import ClientGone, Reply, UnknownTool
from handoff.settings import Settings
from handoff.telemetry import metrics
from handoff.telemetry.calls import Arrival

log = structlog.get_logger(__name__)

MCP_PATH: Final = "/mcp"
metrics.HTTP_ROUTE.admit(MCP_PATH, "/healthz", "/readyz", "/alerts", "/watchdog")
CallTool = Callable[[Caller, str, dict[str, Any], Arrival, Callable[[], Awaitable[object]]], Awaitable[Reply]]
Readiness = Callable[[], Awaitable[str | None]]

_DIGITS_ALIKE: Final = bytes.maketrans(b"123456789", b"000000000")
_TWENTY_DIGITS: Final = b"0" * 20  # an integer with fewer fits into 64 bits
_ANYONE: Final = Caller()
_JSON_DEPTH_MAX: Final = 512  # Python 3.11 reads a little less than 1,000 levels, orjson 1,024, Python 3.14 many more
JSON_VALUES_MAX: Final = 50_000  # names included; more would hold up the event loop for too long to parse
_TOO_DEEP: Final = to_json(  # worded as the SDK refuses JSON that it can't parse
    {"jsonrpc": "2.0", "id": None, "error": {"code": types.PARSE_ERROR, "message": "Parse error"}}
)


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
        is_ending: Callable[[], bool] = lambda: False,
        stateless: bool = True,
        json_response: bool = True,
    ) -> None:
        self._settings = settings
        self._tokens = tokens
        self._readiness = readiness
        self._is_ending = is_ending
        self._bodies = Bodies(settings)
        self._call_tool = call_tool
        self._notified = {} if alerts is None else {"/alerts": alerts.store, "/watchdog": alerts.store_heartbeat}
        self._hosts = Allowed(host_names(settings), settings.allowed_hosts)
        self._origins = Allowed(
            [f"{scheme}://{name}" for scheme in ("http", "https") for name in host_names(settings)],
            settings.allowed_origins,
        )
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
        try:
            status = await self._answer(scope, receive, send)
        finally:
            metrics.HTTP_DURATION.record(monotonic() - received, scope["method"], str(status), scope["path"])

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> int:
        """Answer a request; return the status that was sent, or 0 if none was."""
        # httptools leaves white space around header values, and the protocol compares them without it.
        headers = {name.decode("latin-1"): value.decode("latin-1").strip(" \t") for name, value in scope["headers"]}
        if len(headers) != len(scope["headers"]) and has_duplicates(scope["headers"]):
            return await refuse(
                send,
                400,
                "header_twice",
                "A request can have only one Host, one Origin and one Authorization header. Send each once.",
            )
        if not self._hosts.holds(headers.get("host", "")):
            return await refuse(
                send,
                421,
                "host_not_allowed",
                "This service does not answer to this Host. The operator can allow it with HANDOFF_ALLOWED_HOSTS.",
            )
        if "origin" in headers and not self._origins.holds(headers["origin"]):
            return await refuse(
                send,
                403,
                "origin_not_allowed",
                "This Origin may not call the service. The operator can allow it with HANDOFF_ALLOWED_ORIGINS.",
            )
        if scope["path"] == "/healthz":
            return await respond(send, 200, to_json({"status": "alive"}))
        if scope["path"] == "/readyz":
            problem = await self._readiness()
            state = {"status": "ready"} if problem is None else {"status": "unready", "problem": problem}
            return await respond(send, 200 if problem is None else 503, to_json(state))
        is_notification = scope["path"] in self._notified
        if not is_notification and scope["path"] != MCP_PATH:
            return await refuse(
                send,
                404,
                "not_found",
                f"There is nothing at this path. The MCP endpoint is {MCP_PATH}; /healthz and /readyz report the state.",
            )
        if is_notification and scope["method"] != "POST":
            return await refuse(
                send, 405, "method_not_allowed", "This path accepts only POST requests, from Alertmanager.", ALLOW_POST
            )
        caller = self._caller(headers)
        if caller is None:
            return await refuse(
                send,
                401,
                "unauthorized",
                "This request needs a bearer token that the service knows: send Authorization: Bearer TOKEN.",
                CHALLENGE,
            )
        if is_notification:
            return await self._notification(scope, receive, send, headers, caller)
        scope["handoff.caller"], scope["handoff.headers"] = caller, headers
        return await self._mcp(scope, receive, send, headers, caller)

    async def _notification(
        self, scope: Scope, receive: Receive, send: Send, headers: dict[str, str], caller: Caller
    ) -> int:
        """Answer a notification from Alertmanager, once it is stored."""
        if "alerts" not in caller.scopes:
            return await refuse(
                send, 403, "scope_missing", "This token lacks the scope alerts. Add it to the token in the tokens file."
            )
        try:
            body = await self._bodies.read(receive, headers, caller.agent, BODY_BYTES_MAX)
        except RequestCutOff:
            return 0
        except BodyRefused as refused:
            if refused.too_large != "body":
                return await self._refuse_for_now(send, refused)
            return await refuse(
                send,
                413,
                "body_too_large",
                f"The notification has more than {BODY_BYTES_MAX} bytes. Lower max_alerts in Alertmanager's configuration.",
                CLOSE,
            )
        try:
            return await self._store(scope["path"], send, body)
        finally:
            self._bodies.give_back(len(body), caller.agent)

    async def _store(self, path: str, send: Send, body: bytes) -> int:
        too_much = excess(body, values_max=VALUES_MAX, levels_max=_JSON_DEPTH_MAX)
        if too_much == "levels":
            return await refuse(
                send,
                400,
                "invalid_notification",
                f"The notification nests JSON deeper than {_JSON_DEPTH_MAX} levels. "
                "Send notifications in the format of Alertmanager's webhook, version 4.",
            )
        if too_much == "values":
            return await refuse(
                send,
                413,
                "too_many_values",
                f"The notification has more than {VALUES_MAX} JSON values. "
                "Lower max_alerts in Alertmanager's configuration.",
            )
        try:
            stored = await self._notified[path](body)
        except Unavailable as error:
            return await respond(send, 503, to_json({"error": error.as_dict()}), RETRY_LATER)
        except HandoffError as error:
            return await refuse(send, 400, error.code, f"{error.message} {error.hint}")
        except Exception:
            log.exception("alert.failed", path=path)
            return await respond(
                send,
                500,
                to_json(
                    {
                        "error": {
                            "code": "internal",
                            "message": "The notification was not stored because of a bug. See alert.failed in the log.",
                        }
                    }
                ),
            )
        return await respond(send, 200, to_json({"stored": stored}))

    async def _mcp(self, scope: Scope, receive: Receive, send: Send, headers: dict[str, str], caller: Caller) -> int:
        try:
            body = await self._bodies.read(receive, headers, caller.agent, self._settings.body_bytes_max)
        except RequestCutOff:  # an unfinished request must not take effect
            return 0
        except BodyRefused as refused:
            if refused.too_large != "body":
                return await self._refuse_for_now(send, refused)
            return await refuse(
                send,
                413,
                "body_too_large",
                f"The request has more than {self._settings.body_bytes_max} bytes. Split it over several calls.",
                CLOSE,
            )
        try:
            return await self._answer_mcp(scope, receive, send, headers, caller, body)
        except asyncio.CancelledError:  # the service stops, and has waited for this call long enough
            if not self._is_ending() or "handoff.status" in scope or (response := ending.answer(body)) is None:
                raise
            return await respond(send, 200, response, CLOSE)
        finally:
            self._bodies.give_back(len(body), caller.agent)

    async def _answer_mcp(
        self, scope: Scope, receive: Receive, send: Send, headers: dict[str, str], caller: Caller, body: bytes
    ) -> int:
        received = scope["handoff.received"] = monotonic()  # how long the client took to send it is not the call's time
        if (refused := await _refuse_excess(send, body)) is not None:
            return refused
        request = self._common_call(scope, headers, body)
        if request is not None and self._call_tool is not None:
            params = request["params"]
            arrival = Arrival(received, params["_meta"], headers, len(body))
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
        scope["headers"] = [(name, value.strip(b" \t")) for name, value in scope["headers"]]
        scope["handoff.size"] = len(body)
        scope["handoff.gone"] = partial(disconnected, receive)
        status = 0

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = scope["handoff.status"] = message["status"]
            await send(message)

        await self._sdk(scope, replay(body, receive), send_noting_status)
        return status

    async def _refuse_for_now(self, send: Send, refused: BodyRefused) -> int:
        """Refuse a request whose body there is no room for at the moment."""
        if refused.too_large == "share":
            return await refuse(
                send,
                503,
                "share_used_up",
                f"Your requests in progress would have more than {self._bodies.per_caller_max} bytes together, which is "
                "your whole share. Send this request again when one of them has been answered, and send fewer at a time.",
                (*RETRY_LATER, *CLOSE),
            )
        return await refuse(
            send,
            503,
            "bodies_too_large",
            f"The requests in progress would have more than {self._bodies.total_max} bytes together, the most that the "
            "service takes. Send this request again in a few seconds.",
            (*RETRY_LATER, *CLOSE),
        )

    def _caller(self, headers: dict[str, str]) -> Caller | None:
        if self._tokens is None:
            return _ANYONE
        kind, _, token = headers.get("authorization", "").partition(" ")
        return self._tokens.caller(token.strip().encode("latin-1")) if kind.lower() == "bearer" else None

    def _common_call(self, scope: Scope, headers: dict[str, str], body: bytes) -> dict[str, Any] | None:
        """The request, if it is a well-formed tool call of the current protocol; None if the SDK must answer it."""
        if (
            headers.get("mcp-method") != "tools/call"
            or scope["method"] != "POST"
            or headers.get("mcp-protocol-version") not in MODERN_PROTOCOL_VERSIONS
            or not headers.get("content-type", "").startswith("application/json")
            or not accepts_json(headers.get("accept", ""))
        ):
            return None
        if b"metadata" in body and _TWENTY_DIGITS in body.translate(_DIGITS_ALIKE):
            return None  # it may hold an integer above 64 bits, which orjson would round but the SDK's parser does not
        try:
            request = orjson.loads(body)
        except orjson.JSONDecodeError:
            return None
        if not isinstance(request, dict) or request.get("jsonrpc") != "2.0" or request.get("method") != "tools/call":
            return None
        if type(request.get("id")) not in (str, int) or len(headers) != len(scope["headers"]):  # a duplicate header
            return None
        if not isinstance(classify_inbound_request(request, headers=headers), InboundModernRoute):
            return None
        try:
            CLIENT_REQUESTS["tools/call", headers["mcp-protocol-version"]].model_validate(request, by_name=False)
        except ValidationError:
            return None
        return request

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


async def _refuse_excess(send: Send, body: bytes) -> int | None:
    """Refuse a body that would cost too much to parse; return the status, or None if there is no reason to."""
    too_much = excess(body, values_max=JSON_VALUES_MAX, levels_max=_JSON_DEPTH_MAX)
    if too_much is None:
        return None
    if too_much == "levels":
        return await respond(send, 400, _TOO_DEEP)
    return await refuse(
        send,
        413,
        "too_many_values",
        f"The request has more than {JSON_VALUES_MAX} JSON values. Split it over several calls.",
    )
