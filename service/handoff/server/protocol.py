"""The MCP server, and what happens around each call: scope, validation, translation of errors.
Transports (http.py, stdio) hand calls in and carry replies out.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, TypeVar, cast

import mcp_types as types
import orjson
import structlog
from mcp.server.caching import CacheHint
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.subscriptions import ListenHandler
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from handoff import __version__
from handoff.app import App, Call
from handoff.encoding import to_json
from handoff.errors import Forbidden, HandoffError, Invalid, Unavailable
from handoff.model import Caller, Scope
from handoff.resources.contract import match, parsed_query
from handoff.server.catalog import RESOURCES, WAITING_TOOLS, list_tools, tools_of
from handoff.telemetry import logs, metrics, spans
from handoff.telemetry.spans import Arrival
from handoff.tools.contract import Arguments, Tool

P = TypeVar("P")
R = TypeVar("R")

log = structlog.get_logger(__name__)

INSTRUCTIONS: Final = (
    "Hand work over to another agent, durably. Sender: register_session, update_context as you work (decisions, questions, "
    "files), then request_handoff. Receiver: get_inbox, accept_handoff (gives a brief and a token), work, "
    "resolve_handoff action=complete with the token. Pass your own name as agent, always the same. A call that failed as "
    "retryable may be repeated with the same idempotency_key: it takes effect once."
)
_LIST_HINT: Final = CacheHint(ttl_ms=3_600_000, scope="public")
_SUBSCRIPTIONS_MAX: Final = 1_000
_SUBSCRIBED_URIS_MAX: Final = 100
_ERRORS_SHOWN: Final = 3
_TELLING: Final = frozenset(
    {"request_handoff", "accept_handoff", "renew_handoff", "resolve_handoff", "lapse_handoff"}
)  # a handoff's story


@dataclass(frozen=True, slots=True)
class Reply:
    """What a tool answers: its structured content or its error, as JSON."""

    body: bytes
    is_error: bool


_TO_NOBODY: Final = Reply(b"{}", is_error=True)


class UnknownTool(Exception):
    """No tool that this server serves has this name."""


async def call_tool(app: App, caller: Caller, name: str, arguments: dict[str, Any], arrival: Arrival) -> Reply:
    """Run one tool call to its reply. Only UnknownTool and cancellation are raised.

    Deliberate errors reach the model with what to try; a crash is logged with its stack, and hidden.
    """
    tool = tools_of(admin=app.settings.admin).get(name)
    if tool is None:
        raise UnknownTool(name)
    waits = tool.waits and bool(arguments.get("wait_seconds"))
    under_way = metrics.WAITING_CALLS if waits else metrics.ACTIVE_CALLS
    under_way.add(1)
    call = spans.begin(arrival.meta, arrival.headers)
    args: Arguments | None = None
    code, size_bytes = "cancelled", 0
    try:
        _must_have_scope(caller, tool.scope)
        try:
            args = tool.arguments.__pydantic_validator__.validate_python(arguments)
        except ValidationError as error:
            raise _invalid(error) from None
        reply = Reply(to_json(await tool.run(Call(app, caller, arrival.received), args)), is_error=False)
        code, size_bytes = "", len(reply.body)
    except HandoffError as error:
        reply = Reply(to_json({"error": error.as_dict()}), is_error=True)
        code, size_bytes = error.code, len(reply.body)
    except Exception:
        log.exception("tool.failed", tool=name)
        reply = Reply(to_json({"error": _crashed().as_dict()}), is_error=True)
        code, size_bytes = "internal", len(reply.body)
    finally:
        under_way.add(-1)
        noteworthy_s = 0.0 if code or name in _TELLING else math.inf if waits else app.settings.slow_call_s
        ended = spans.End("tools/call", name, "tool_error" if code else "", code)
        duration_s = spans.end(call, arrival, ended, noteworthy_s)
        if logs.passes("tool.call", "info"):
            logs.write("info", "tool.call", _said(tool, args, caller, code, duration_s, arrival.size_bytes, size_bytes))
        spans.leave()
    return reply


def _said(
    tool: Tool[Any],
    args: Arguments | None,
    caller: Caller,
    code: str,
    duration_s: float,
    request_bytes: int,
    response_bytes: int,
) -> str:
    """What the log says of a call, as JSON members: who, on what, how it went and how large; never what was said.

    Names are safe in JSON as they are: NAME_PATTERN has neither quotes nor backslashes.
    """
    known: Mapping[str, Any] = args.__dict__ if args is not None else {}
    said = f',"tool":"{tool.name}","outcome":"{code or "ok"}","duration_ms":{duration_s * 1e3:.3f}'
    said = f'{said},"request_bytes":{request_bytes},"response_bytes":{response_bytes}'
    for name, value in (
        ("agent", known.get("agent") or caller.agent),
        ("session", known.get("session_key")),
    ):
        if value is not None:
            said = f'{said},"{name}":"{value}"'
    return f'{said},"handoff":{known["handoff_id"]}' if "handoff_id" in known else said


def build_server(app: App, local: Caller | None = None) -> Server[Any]:
    """The SDK's server over our tools and resources, for every transport and both protocol eras.

    `local` is who calls where the transport does not say: over stdio, the one client there is.
    """
    nobody = local or Caller()

    def caller_of(ctx: ServerRequestContext[Any]) -> Caller:
        return ctx.request.scope["handoff.caller"] if ctx.request is not None else nobody

    listed = types.ListToolsResult(tools=list_tools(app.settings))
    schemas = {tool.name: tool.input_schema for tool in listed.tools}
    listen = ListenHandler(app.wakeups, max_subscriptions=_SUBSCRIPTIONS_MAX)
    app.wakeups.on_release.append(listen.close)

    async def on_list_tools(_: ServerRequestContext[Any], __: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        return listed

    async def on_call_tool(ctx: ServerRequestContext[Any], params: types.CallToolRequestParams) -> types.CallToolResult:
        call = call_tool(app, caller_of(ctx), params.name, params.arguments or {}, _arrival(ctx))
        try:
            reply = await (unless(_gone(ctx), call) if params.name in WAITING_TOOLS else call)
        except UnknownTool:
            raise MCPError(types.INVALID_PARAMS, f"Unknown tool: {params.name[:100]}") from None
        return types.CallToolResult(
            content=[types.TextContent(text=reply.body.decode())],
            structured_content=None if reply.is_error else orjson.loads(reply.body),
            is_error=reply.is_error,
        )

    async def on_list_resources(
        _: ServerRequestContext[Any], __: types.PaginatedRequestParams | None
    ) -> types.ListResourcesResult:
        return types.ListResourcesResult(
            resources=[
                types.Resource(uri=it.path, name=it.name, description=it.description, mime_type=it.mime_type)
                for it in RESOURCES
                if it.is_fixed
            ]
        )

    async def on_list_resource_templates(
        _: ServerRequestContext[Any], __: types.PaginatedRequestParams | None
    ) -> types.ListResourceTemplatesResult:
        return types.ListResourceTemplatesResult(
            resource_templates=[
                types.ResourceTemplate(
                    uri_template=it.uri_template, name=it.name, description=it.description, mime_type=it.mime_type
                )
                for it in RESOURCES
            ]
        )

    async def on_read_resource(
        ctx: ServerRequestContext[Any], params: types.ReadResourceRequestParams
    ) -> types.ReadResourceResult:
        text, mime_type = await read_resource(app, caller_of(ctx), str(params.uri), _arrival(ctx))
        return types.ReadResourceResult(
            contents=[types.TextResourceContents(uri=params.uri, mime_type=mime_type, text=text)]
        )

    async def on_listen(
        ctx: ServerRequestContext[Any], params: types.SubscriptionsListenRequestParams
    ) -> types.SubscriptionsListenResult:
        uris = params.notifications.resource_subscriptions or []
        await _may_subscribe(app, caller_of(ctx), uris)
        with app.wakeups.subscribed(uris):
            return await listen(ctx, params)

    server: Server[Any] = Server(
        "handoff",
        version=__version__,
        title="Handoff",
        instructions=INSTRUCTIONS,
        cache_hints={
            "tools/list": _LIST_HINT,
            "resources/list": _LIST_HINT,
            "resources/templates/list": _LIST_HINT,
            "resources/read": CacheHint(ttl_ms=0, scope="private"),
            "server/discover": _LIST_HINT,
        },
        get_tool_input_schema=schemas.get,
        on_list_tools=_measured("tools/list", on_list_tools),
        on_call_tool=on_call_tool,
        on_list_resources=_measured("resources/list", on_list_resources),
        on_list_resource_templates=_measured("resources/templates/list", on_list_resource_templates),
        on_read_resource=on_read_resource,
        on_subscriptions_listen=on_listen,
    )

    async def on_discover(ctx: ServerRequestContext[Any], _: types.RequestParams) -> types.DiscoverResult:
        capabilities = server.get_capabilities(protocol_version=ctx.protocol_version)
        return types.DiscoverResult(
            supported_versions=list(MODERN_PROTOCOL_VERSIONS),
            # What can be listened to is resources that change; which tools and resources there are never does.
            capabilities=capabilities.model_copy(
                update={
                    "tools": types.ToolsCapability(list_changed=False),
                    "resources": types.ResourcesCapability(subscribe=True, list_changed=False),
                }
            ),
            instructions=INSTRUCTIONS,
        )

    server.add_request_handler("server/discover", types.RequestParams, _measured("server/discover", on_discover))
    return server


async def unless(gone: Awaitable[object], call: Awaitable[Reply]) -> Reply:
    """The call's reply. When its client goes away first, the call is cancelled, and the reply is to nobody."""
    task, watch = asyncio.ensure_future(call), asyncio.ensure_future(gone)
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else _TO_NOBODY
    finally:
        for one in (task, watch):
            one.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


def _measured(
    method: str, handle: Callable[[ServerRequestContext[Any], P], Awaitable[R]]
) -> Callable[[ServerRequestContext[Any], P], Awaitable[R]]:
    """The handler of a method that can hardly fail, with its duration recorded."""

    async def measured(ctx: ServerRequestContext[Any], params: P) -> R:
        arrival = _arrival(ctx)
        call = spans.begin(arrival.meta, arrival.headers)
        try:
            return await handle(ctx, params)
        finally:
            spans.end(call, arrival, spans.End(method), math.inf)
            spans.leave()

    return measured


def _arrival(ctx: ServerRequestContext[Any]) -> Arrival:
    meta = cast("Mapping[str, Any] | None", ctx.meta)
    if ctx.request is None:
        return Arrival(monotonic(), meta)
    scope: Mapping[str, Any] = ctx.request.scope
    return Arrival(scope["handoff.received"], meta, scope["handoff.headers"], scope["handoff.size"])


def _gone(ctx: ServerRequestContext[Any]) -> Awaitable[object]:
    """What ends when the client of an HTTP request goes away. Of other transports' clients the SDK takes care."""
    return ctx.request.scope["handoff.gone"]() if ctx.request is not None else asyncio.Event().wait()


async def read_resource(app: App, caller: Caller, uri: str, arrival: Arrival) -> tuple[str, str]:
    """A resource's text and its MIME type. Raises MCPError, with the error as its data."""
    call = spans.begin(arrival.meta, arrival.headers)
    code = "cancelled"
    try:
        read = await _read_resource(app, caller, uri)
        code = ""
    except MCPError as error:
        code = error.error.data["code"]
        raise
    finally:
        ended = spans.End("resources/read", "", code, code)
        spans.end(call, arrival, ended, 0.0 if code else app.settings.slow_call_s)
        spans.leave()
    return read


async def _read_resource(app: App, caller: Caller, uri: str) -> tuple[str, str]:
    try:
        found = match(RESOURCES, uri)
        if found is None:
            raise Invalid("resource_not_found", "No resource has this URI.", "resources/templates/list names them all.")
        resource, path, query = found
        _must_have_scope(caller, resource.scope)
        try:
            args = resource.query.model_validate(parsed_query(query))
        except ValidationError as error:
            raise _invalid(error) from None
        value = await resource.read(Call(app, caller, monotonic()), path, args)
        return value if isinstance(value, str) else to_json(value).decode(), resource.mime_type
    except HandoffError as error:
        raise _as_mcp_error(error, uri) from error
    except Exception as error:
        log.exception("resource.failed")
        raise _as_mcp_error(_crashed(), uri) from error


async def _may_subscribe(app: App, caller: Caller, uris: list[str]) -> None:
    """Subscriptions are to inboxes and handoffs that the caller may read."""
    if len(uris) > _SUBSCRIBED_URIS_MAX:
        raise MCPError(types.INVALID_PARAMS, f"At most {_SUBSCRIBED_URIS_MAX} resources a subscription")
    for uri in uris:
        await _read_resource(app, caller, uri)
        found = match(RESOURCES, uri)
        if found is None or not found[0].rings or uri != found[0].path.format(**found[1]):
            raise _as_mcp_error(_NEVER_RINGS, uri)


_NEVER_RINGS: Final = Invalid(
    "not_subscribable",
    "This URI can be read, but nothing is ever said of it.",
    f"Subscribe to {' or '.join(it.path for it in RESOURCES if it.rings)}, without a query and without %.",
)


def _must_have_scope(caller: Caller, scope: Scope) -> None:
    if scope not in caller.scopes and "admin" not in caller.scopes:
        raise Forbidden(
            "scope_missing",
            f"This token lacks the scope {scope}.",
            "Use a token that has it; the operator sets scopes in the tokens file.",
        )


def _invalid(error: ValidationError) -> Invalid:
    """What is wrong with which argument; the values themselves are not repeated."""
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    shown = [
        f"{'.'.join(map(str, it['loc'])) or 'arguments'}: {it['msg'].removeprefix('Value error, ')}"
        for it in problems[:_ERRORS_SHOWN]
    ]
    more = f" (and {len(problems) - _ERRORS_SHOWN} more)" if len(problems) > _ERRORS_SHOWN else ""
    return Invalid(
        "invalid_arguments",
        "; ".join(part[:300] for part in shown) + more + ".",
        "Correct what is named; the schema says what is allowed. Nothing was changed.",
    )


def _crashed() -> HandoffError:
    return HandoffError(
        "internal",
        "The service failed on this call; that is a defect, and it has been logged.",
        "Repeat it once with the same idempotency_key; if it fails again, go on without it and tell the operator.",
    )


def _as_mcp_error(error: HandoffError, uri: str) -> MCPError:
    code = types.INTERNAL_ERROR if isinstance(error, Unavailable) or error.code == "internal" else types.INVALID_PARAMS
    return MCPError(code, f"{error.message} {error.hint}", data={"uri": uri[:500], **error.as_dict()})
