"""The binding to the MCP SDK: a server for our tools and resources, for every transport and both protocol eras."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from time import monotonic
from typing import Any, Final, TypeVar, cast

import mcp_types as types
import orjson
from mcp.server.caching import CacheHint
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.subscriptions import ListenHandler
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from handoff import __version__
from handoff.context import App
from handoff.errors import Busy, Forbidden, HandoffError, Invalid, Unavailable
from handoff.model import Caller
from handoff.resources.contract import match
from handoff.server.admission import SUBSCRIPTIONS_MAX
from handoff.server.calls import (
    ClientGone,
    Failure,
    Reply,
    Subject,
    UnknownTool,
    call_tool,
    perform,
    read,
    read_resource,
)
from handoff.server.catalog import RESOURCES, list_resource_templates, list_resources, list_tools
from handoff.telemetry import metrics
from handoff.telemetry.calls import Arrival

P = TypeVar("P")
R = TypeVar("R")

_UNREAD: Final = Reply(b"{}", is_error=True)  # for a client that is gone

INSTRUCTIONS: Final = (
    "Hand work over to another agent, durably. As the sender, call register_session, record your work with update_context "
    "as you go (decisions, open questions, files), then call request_handoff. As the receiver, call get_inbox and "
    "accept_handoff, which returns a brief and a lease token; work, calling renew_handoff before the lease expires; then "
    "call resolve_handoff with action=complete and the token. Pass your own name as agent, the same in every call. Pass a "
    "new idempotency_key in each call that accepts one: if the call fails with retryable=true, repeat it unchanged, key "
    "included, and it takes effect only once. If you must fill in an argument that you don't need: null, an empty text, or "
    "0 as handoff_id, token or deadline_minutes leaves it out; of several values, the first is the default."
)
_LIST_HINT: Final = CacheHint(ttl_ms=3_600_000, scope="public")
_SUBSCRIBED_URIS_MAX: Final = 100


def build_server(app: App, local: Caller | None = None) -> Server[Any]:
    """Build the SDK's server for an App.

    `local` is the caller where the transport does not identify it: over stdio, the only client.
    """
    default = local or Caller()

    def caller_of(ctx: ServerRequestContext[Any]) -> Caller:
        return ctx.request.scope["handoff.caller"] if ctx.request is not None else default

    listed = types.ListToolsResult(tools=list_tools(app.settings))
    resources = types.ListResourcesResult(resources=list_resources())
    templates = types.ListResourceTemplatesResult(resource_templates=list_resource_templates())
    schemas = {tool.name: tool.input_schema for tool in listed.tools}
    listen = ListenHandler(app.wakeups, max_subscriptions=SUBSCRIPTIONS_MAX)
    app.wakeups.on_release.append(listen.close)

    async def on_call_tool(ctx: ServerRequestContext[Any], params: types.CallToolRequestParams) -> types.CallToolResult:
        try:
            reply = await call_tool(
                app, caller_of(ctx), params.name, params.arguments or {}, _arrival(ctx), partial(_client_gone, ctx)
            )
        except UnknownTool:
            raise MCPError(types.INVALID_PARAMS, f"Unknown tool: {params.name[:100]}") from None
        except ClientGone:
            reply = _UNREAD
        return types.CallToolResult(
            content=[types.TextContent(text=reply.body.decode())],
            structured_content=None if reply.is_error else orjson.loads(reply.body),
            is_error=reply.is_error,
        )

    async def on_read_resource(
        ctx: ServerRequestContext[Any], params: types.ReadResourceRequestParams
    ) -> types.ReadResourceResult:
        result = await read_resource(app, caller_of(ctx), str(params.uri), _arrival(ctx))
        if isinstance(result, Failure):
            raise _as_mcp_error(result.error, str(params.uri)) from result.error
        text, mime_type = result
        return types.ReadResourceResult(
            contents=[types.TextResourceContents(uri=params.uri, mime_type=mime_type, text=text.decode())]
        )

    async def on_listen(
        ctx: ServerRequestContext[Any], params: types.SubscriptionsListenRequestParams
    ) -> types.SubscriptionsListenResult:
        uris = params.notifications.resource_subscriptions or []
        caller = caller_of(ctx)
        subscriptions, subscriber = app.admission.subscriptions, _subscriber(caller, uris)
        try:
            subscriptions.take(subscriber)
        except Busy as error:
            raise _as_mcp_error(error) from error
        try:
            await _check_subscription(app, caller, uris)
            with app.wakeups.subscribed(uris):
                return await _unless_revoked(app if ctx.request is not None else None, caller, listen(ctx, params))
        finally:
            subscriptions.give_back(subscriber)

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
        on_list_tools=_performed(app, "tools/list", _answer(listed)),
        on_call_tool=on_call_tool,
        on_list_resources=_performed(app, "resources/list", _answer(resources)),
        on_list_resource_templates=_performed(app, "resources/templates/list", _answer(templates)),
        on_read_resource=on_read_resource,
        on_subscriptions_listen=on_listen,
    )

    async def on_discover(ctx: ServerRequestContext[Any], _: types.RequestParams) -> types.DiscoverResult:
        capabilities = server.get_capabilities(protocol_version=ctx.protocol_version)
        return types.DiscoverResult(
            supported_versions=list(MODERN_PROTOCOL_VERSIONS),
            # Single resources can change, but the lists of tools and resources never do.
            capabilities=capabilities.model_copy(
                update={
                    "tools": types.ToolsCapability(list_changed=False),
                    "resources": types.ResourcesCapability(subscribe=True, list_changed=False),
                }
            ),
            instructions=INSTRUCTIONS,
        )

    server.add_request_handler("server/discover", types.RequestParams, _performed(app, "server/discover", on_discover))
    return server


def _answer(result: R) -> Callable[[ServerRequestContext[Any], types.PaginatedRequestParams | None], Awaitable[R]]:
    """A handler that always returns `result`."""

    async def answer(_: ServerRequestContext[Any], __: types.PaginatedRequestParams | None) -> R:
        return result

    return answer


def _performed(
    app: App, method: str, handle: Callable[[ServerRequestContext[Any], P], Awaitable[R]]
) -> Callable[[ServerRequestContext[Any], P], Awaitable[R]]:
    """The handler of a method, wrapped so that each call is recorded."""
    metrics.METHOD.admit(method)

    async def performed(ctx: ServerRequestContext[Any], params: P) -> R:
        result = await perform(app, Subject(method), _arrival(ctx), lambda: handle(ctx, params))
        if isinstance(result, Failure):
            raise _as_mcp_error(result.error) from result.error
        return result

    return performed


def _arrival(ctx: ServerRequestContext[Any]) -> Arrival:
    meta = cast("Mapping[str, Any] | None", ctx.meta)
    if ctx.request is None:
        return Arrival(monotonic(), meta)
    scope: Mapping[str, Any] = ctx.request.scope
    return Arrival(scope["handoff.received"], meta, scope["handoff.headers"], scope["handoff.size"])


def _client_gone(ctx: ServerRequestContext[Any]) -> Awaitable[object]:
    """Completes when the client of an HTTP request goes away. The SDK watches the clients of other transports."""
    return ctx.request.scope["handoff.gone"]() if ctx.request is not None else asyncio.Event().wait()


def _subscriber(caller: Caller, uris: list[str]) -> str:
    """Who subscribes: the token's agent or, without tokens, the first whose inbox is among the URIs; otherwise ""."""
    if caller.agent is not None:
        return caller.agent
    found = (match(RESOURCES, uri) for uri in uris[:_SUBSCRIBED_URIS_MAX] if uri.startswith("handoff://agents/"))
    try:
        return next((it[1]["agent"] for it in found if it is not None and "agent" in it[1]), "")
    except Invalid:  # it is refused in a moment, by its own error
        return ""


async def _unless_revoked(app: App | None, caller: Caller, listening: Awaitable[R]) -> R:
    """Serve a subscription until the caller's token is revoked, if it came with one. Raises MCPError."""
    if app is None or app.tokens is None:
        return await listening
    try:
        return await app.tokens.unless_revoked(caller, listening)
    except Forbidden as error:
        raise _as_mcp_error(error) from error


async def _check_subscription(app: App, caller: Caller, uris: list[str]) -> None:
    """Raise MCPError unless all URIs name inboxes or handoffs that the caller may read."""
    if len(uris) > _SUBSCRIBED_URIS_MAX:
        raise MCPError(
            types.INVALID_PARAMS,
            f"A subscription can have at most {_SUBSCRIBED_URIS_MAX} resources. Open several subscriptions.",
        )
    for uri in uris:
        try:
            await read(app, caller, uri, monotonic())
            found = match(RESOURCES, uri)
            if found is None or not found[0].is_subscribable or uri != found[0].path.format(**found[1]):
                raise _NOT_SUBSCRIBABLE
        except HandoffError as error:
            raise _as_mcp_error(error, uri) from error


_NOT_SUBSCRIBABLE: Final = Invalid(
    "not_subscribable",
    "This URI can be read, but changes are not announced for it.",
    f"Subscribe to {' or '.join(resource.path for resource in RESOURCES if resource.is_subscribable)}, "
    "without a query and without percent-encoding.",
)


def _as_mcp_error(error: HandoffError, uri: str | None = None) -> MCPError:
    """The error in JSON-RPC's form. Its data are what a tool's reply would contain."""
    code = types.INTERNAL_ERROR if isinstance(error, Unavailable) or error.code == "internal" else types.INVALID_PARAMS
    about = {} if uri is None else {"uri": uri[:500]}
    return MCPError(code, f"{error.message} {error.hint}", data={**about, **error.as_dict()})
