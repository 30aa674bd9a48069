"""The binding to the MCP SDK: a server for our tools, resources and prompts, for every transport and both protocol eras."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from functools import partial
from time import monotonic
from typing import Any, Final, TypeVar, cast

import mcp_types as types
import orjson
from mcp.server.caching import CacheHint
from mcp.server.context import CallNext, HandlerResult, ServerMiddleware, ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.subscriptions import ListenHandler
from mcp.shared.exceptions import MCPError
from mcp_types.methods import SPEC_CLIENT_METHODS
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from handoff import __version__
from handoff.context import App
from handoff.errors import Busy, Forbidden, HandoffError, Invalid
from handoff.model import Caller
from handoff.resources.contract import match
from handoff.server.admission import SUBSCRIPTIONS_MAX
from handoff.server.calls import (
    ClientGone,
    Failure,
    Reply,
    UnknownTool,
    call_tool,
    completions,
    crashed,
    read,
    read_resource,
    write_prompt,
)
from handoff.server.catalog import RESOURCES, list_prompts, list_resource_templates, list_resources, list_tools
from handoff.server.record import CANCELLED, JSONRPC_NAMES, Subject, jsonrpc_code, record_call
from handoff.telemetry import calls, metrics
from handoff.telemetry.calls import Arrival

R = TypeVar("R")
_LISTEN: Final = "subscriptions/listen"
metrics.METHOD.admit(*SPEC_CLIENT_METHODS)
_arrival: ContextVar[Arrival] = ContextVar("arrival")  # of the request that the SDK is handling

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
                app, caller_of(ctx), params.name, params.arguments or {}, _arrival.get(), partial(_client_gone, ctx)
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
        result = await read_resource(app, caller_of(ctx), str(params.uri), _arrival.get())
        if isinstance(result, Failure):
            raise _as_mcp_error(result.error, str(params.uri)) from result.error
        content = types.TextResourceContents(uri=params.uri, mime_type=result.mime_type, text=result.body.decode())
        return types.ReadResourceResult(contents=[content], ttl_ms=result.ttl_ms)

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
            "prompts/list": _LIST_HINT,
            "resources/read": CacheHint(ttl_ms=0, scope="private"),
            "server/discover": _LIST_HINT,
        },
        get_tool_input_schema=schemas.get,
        on_list_tools=_answer(listed),
        on_call_tool=on_call_tool,
        on_list_resources=_answer(resources),
        on_list_resource_templates=_answer(templates),
        on_read_resource=on_read_resource,
        **_prompt_handlers(app, caller_of),
        on_subscriptions_listen=on_listen,
    )

    async def on_discover(ctx: ServerRequestContext[Any], _: types.RequestParams) -> types.DiscoverResult:
        capabilities = server.get_capabilities(protocol_version=ctx.protocol_version)
        return types.DiscoverResult(
            supported_versions=list(MODERN_PROTOCOL_VERSIONS),
            # Single resources can change, but the lists of tools, resources and prompts never do.
            capabilities=capabilities.model_copy(
                update={
                    "tools": types.ToolsCapability(list_changed=False),
                    "resources": types.ResourcesCapability(subscribe=True, list_changed=False),
                    "prompts": types.PromptsCapability(list_changed=False),
                }
            ),
            instructions=INSTRUCTIONS,
        )

    server.add_request_handler("server/discover", types.RequestParams, on_discover)
    server.middleware[:] = [_recording(app, caller_of)]  # instead of the SDK's, whose spans would be a second record
    return server


def _prompt_handlers(app: App, caller_of: Callable[[ServerRequestContext[Any]], Caller]) -> dict[str, Any]:
    """The handlers of prompts, by the names of the SDK's arguments."""

    async def on_get_prompt(ctx: ServerRequestContext[Any], params: types.GetPromptRequestParams) -> types.GetPromptResult:
        result = await write_prompt(app, caller_of(ctx), params.name, params.arguments or {}, _arrival.get())
        if isinstance(result, Failure):
            raise _as_mcp_error(result.error) from result.error
        return types.GetPromptResult(messages=[types.PromptMessage(role="user", content=types.TextContent(text=result))])

    async def on_completion(ctx: ServerRequestContext[Any], params: types.CompleteRequestParams) -> types.CompleteResult:
        values: list[str] = []
        if isinstance(params.ref, types.PromptReference):
            prompt, asked, received = params.ref.name, params.argument, _arrival.get().received
            try:
                values = await completions(app, caller_of(ctx), prompt, asked.name, asked.value, received)
            except HandoffError as error:
                raise _as_mcp_error(error) from error
        return types.CompleteResult(completion=types.Completion(values=values))

    listed = types.ListPromptsResult(prompts=list_prompts())
    return {"on_list_prompts": _answer(listed), "on_get_prompt": on_get_prompt, "on_completion": on_completion}


def _answer(result: R) -> Callable[[ServerRequestContext[Any], types.PaginatedRequestParams | None], Awaitable[R]]:
    """A handler that always returns `result`."""

    async def answer(_: ServerRequestContext[Any], __: types.PaginatedRequestParams | None) -> R:
        return result

    return answer


def _recording(app: App, caller_of: Callable[[ServerRequestContext[Any]], Caller]) -> ServerMiddleware[Any]:
    """What records each request that the SDK handles or refuses, unless its handler has recorded it already."""

    async def recorded(ctx: ServerRequestContext[Any], call_next: CallNext) -> HandlerResult:
        if ctx.request_id is None:  # a notification
            return await call_next(ctx)
        arrival = _arriving(ctx)
        _arrival.set(arrival)
        subject = Subject(ctx.method, agent=caller_of(ctx).agent, is_waiting=ctx.method == _LISTEN)
        record = calls.begin(arrival.meta, arrival.headers)
        code = CANCELLED
        try:
            result = await call_next(ctx)
            code = ""
        except MCPError as error:
            subject.rpc_code, code = error.error.code, _code_of(error)
            raise
        except ValidationError:
            subject.rpc_code, code = types.INVALID_PARAMS, "invalid_params"
            raise
        except Exception as raised:
            crash = crashed(subject, raised)
            subject.rpc_code, code, subject.cause = types.INTERNAL_ERROR, crash.code, type(raised).__name__
            raise _as_mcp_error(crash) from raised
        else:
            return result
        finally:
            if not arrival.has_ended:
                record_call(app, record, subject, arrival, code)
            calls.leave()

    return recorded


def _code_of(error: MCPError) -> str:
    """The error's code in our words, or the name of its JSON-RPC code if it is the SDK's."""
    data = error.error.data
    if isinstance(data, dict) and isinstance(code := cast("dict[str, Any]", data).get("code"), str):
        return code
    return JSONRPC_NAMES.get(error.error.code, "protocol_error")


def _arriving(ctx: ServerRequestContext[Any]) -> Arrival:
    """How the request arrived: as the edge has noted it or, over another transport, now."""
    arrival: Arrival = Arrival(monotonic()) if ctx.request is None else ctx.request.scope["handoff.arrival"]
    arrival.meta = cast("Mapping[str, Any] | None", ctx.meta)
    arrival.request_id, arrival.protocol_version = ctx.request_id, ctx.protocol_version
    return arrival


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
    about = {} if uri is None else {"uri": uri[:500]}
    return MCPError(jsonrpc_code(error), f"{error.message} {error.hint}", data={**about, **error.as_dict()})
