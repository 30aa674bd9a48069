"""The tools, resources and prompts that the conformance suite expects of a server, on the SDK's low-level Server.

Names and texts come from the suite's scenario descriptions, in `dist/index.js` of its package.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final, get_args

import anyio
from mcp import types
from mcp.server.caching import CacheableMethod, CacheHint
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, PromptsListChanged, ToolsListChanged
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata

Context = ServerRequestContext[Any, Any]
ToolParams = types.CallToolRequestParams
Tool = Callable[[Context, ToolParams], Awaitable[types.CallToolResult | types.InputRequiredResult]]

PIXEL: Final = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="  # PNG
SILENCE: Final = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQAAAAA="  # a WAV header, no samples
PAUSE_S: Final = 0.05  # between notifications, which the scenarios expect as separate events


def _text(text: str) -> types.TextContent:
    return types.TextContent(text=text)


def _image() -> types.ImageContent:
    return types.ImageContent(data=PIXEL, mime_type="image/png")


def _embedded(uri: str, mime_type: str, text: str) -> types.EmbeddedResource:
    return types.EmbeddedResource(resource=types.TextResourceContents(uri=uri, mime_type=mime_type, text=text))


def _object(*required: str, **properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


# -- Tools without interaction


def _answering(*content: types.ContentBlock, is_error: bool = False) -> Tool:
    async def call(_: Context, __: ToolParams) -> types.CallToolResult:
        return types.CallToolResult(content=list(content), is_error=is_error)

    return call


# -- Tools that send notifications


async def _log_three_times(ctx: Context, _: ToolParams) -> types.CallToolResult:
    for line in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        # Deprecated, but the only call that sends nothing to a 2026-07-28 client that has set no log level.
        await ctx.session.send_log_message("info", line, None, ctx.request_id)  # pyright: ignore[reportDeprecated] - see above
        await anyio.sleep(PAUSE_S)
    return types.CallToolResult(content=[_text("Logged three times.")])


async def _report_progress(ctx: Context, _: ToolParams) -> types.CallToolResult:
    for done in (0, 50, 100):
        await ctx.session.report_progress(done, 100)
        await anyio.sleep(PAUSE_S)
    return types.CallToolResult(content=[_text("Reported progress three times.")])


def _publishing(bus: InMemorySubscriptionBus, event: ToolsListChanged | PromptsListChanged) -> Tool:
    async def call(_: Context, __: ToolParams) -> types.CallToolResult:
        await bus.publish(event)
        return types.CallToolResult(content=[_text("Published.")])

    return call


# -- Tools that ask the client, up to 2025-11-25: the server sends a request on the stream of the call


async def _sample(ctx: Context, call: ToolParams) -> types.CallToolResult:
    answer = await ctx.session.send_request(
        _sampling(str((call.arguments or {})["prompt"])),
        types.CreateMessageResult,
        metadata=ServerMessageMetadata(related_request_id=ctx.request_id),
    )
    return types.CallToolResult(content=[_text(f"LLM response: {answer.content}")])


def _eliciting(schema: dict[str, Any]) -> Tool:
    async def call(ctx: Context, call: ToolParams) -> types.CallToolResult:
        message = str((call.arguments or {}).get("message", "Please fill this in"))
        answer = await ctx.session.elicit_form(message, schema, ctx.request_id)
        return types.CallToolResult(content=[_text(f"action={answer.action}, content={answer.content}")])

    return call


UNTITLED: Final = ["option1", "option2", "option3"]
TITLED: Final = [{"const": f"value{n}", "title": f"Choice {n}"} for n in (1, 2, 3)]
USER_FORM: Final = _object("username", "email", username={"type": "string"}, email={"type": "string"})
DEFAULTS_FORM: Final = _object(
    name={"type": "string", "default": "John Doe"},
    age={"type": "integer", "default": 30},
    score={"type": "number", "default": 95.5},
    status={"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
    verified={"type": "boolean", "default": True},
)
ENUMS_FORM: Final = _object(
    untitledSingle={"type": "string", "enum": UNTITLED},
    titledSingle={"type": "string", "oneOf": TITLED},
    legacyEnum={"type": "string", "enum": ["opt1", "opt2"], "enumNames": ["Option One", "Option Two"]},
    untitledMulti={"type": "array", "items": {"type": "string", "enum": UNTITLED}},
    titledMulti={"type": "array", "items": {"anyOf": TITLED}},
)


# -- Tools and a prompt that ask the client, from 2026-07-28: the result is the question, and the retry has the answer

CAPABILITY_OF: Final = {
    "elicitation/create": "elicitation",
    "sampling/createMessage": "sampling",
    "roots/list": "roots",
}


def _sampling(prompt: str) -> types.CreateMessageRequest:
    message = types.SamplingMessage(role="user", content=_text(prompt))
    return types.CreateMessageRequest(params=types.CreateMessageRequestParams(messages=[message], max_tokens=100))


def _form(message: str, **properties: dict[str, Any]) -> types.ElicitRequest:
    schema = _object(*properties, **properties)
    return types.ElicitRequest(params=types.ElicitRequestFormParams(message=message, requested_schema=schema))


NAME: Final = _form("What is your name?", name={"type": "string"})
CONFIRM: Final = _form("Please confirm", ok={"type": "boolean"})
CAPITAL: Final = _sampling("What is the capital of France?")

ROUNDS_OF: Final[dict[str, list[types.InputRequests]]] = {
    "test_missing_capability": [{"capital_question": CAPITAL}],
    "test_streaming_elicitation": [{"user_name": NAME}],
    "test_input_required_result_elicitation": [{"user_name": NAME}],
    "test_input_required_result_sampling": [{"capital_question": CAPITAL}],
    "test_input_required_result_list_roots": [{"client_roots": types.ListRootsRequest()}],
    "test_input_required_result_request_state": [{"confirm": CONFIRM}],
    "test_input_required_result_tampered_state": [{"confirm": CONFIRM}],
    "test_input_required_result_capabilities": [{"user_name": NAME, "capital_question": CAPITAL}],
    "test_input_required_result_multiple_inputs": [
        {"user_name": NAME, "greeting": CAPITAL, "client_roots": types.ListRootsRequest()}
    ],
    "test_input_required_result_multi_round": [
        {"step1": NAME},
        {"step2": _form("What is your favorite color?", color={"type": "string"})},
    ],
}
PROMPT_ROUNDS: Final[list[types.InputRequests]] = [
    {"user_context": _form("What context should the prompt use?", context={"type": "string"})}
]


def _next_question(
    ctx: Context, params: types.InputResponseRequestParams, rounds: list[types.InputRequests]
) -> types.InputRequiredResult | None:
    """Return the first unanswered round, or None if all are answered. The state is its number, sealed by the boundary."""
    at = int(params.request_state or 0)
    questions = _askable(ctx, rounds[at])
    if questions.keys() <= (params.input_responses or {}).keys():
        at += 1
        if at == len(rounds):
            return None
        questions = _askable(ctx, rounds[at])
    return types.InputRequiredResult(input_requests=questions, request_state=str(at))


def _askable(ctx: Context, questions: types.InputRequests) -> types.InputRequests:
    declared = ctx.session.client_capabilities
    askable = {key: ask for key, ask in questions.items() if getattr(declared, CAPABILITY_OF[ask.method], None)}
    if not askable:
        needed = {CAPABILITY_OF[ask.method]: {} for ask in questions.values()}
        raise MCPError(
            types.MISSING_REQUIRED_CLIENT_CAPABILITY,
            "The client did not declare a capability that this call requires",
            {"requiredCapabilities": needed},
        )
    return askable


def _asking(rounds: list[types.InputRequests]) -> Tool:
    async def call(ctx: Context, call: ToolParams) -> types.CallToolResult | types.InputRequiredResult:
        return _next_question(ctx, call, rounds) or types.CallToolResult(content=[_text("state-ok")])

    return call


# -- The tools

INPUT_SCHEMA_OF: Final[dict[str, dict[str, Any]]] = {
    "test_sampling": _object("prompt", prompt={"type": "string"}),
    "test_elicitation": _object("message", message={"type": "string"}),
    "test_custom_header": _object(region={"type": "string", "x-mcp-header": "Region"}),
    "json_schema_2020_12_tool": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "$defs": {"address": {"$anchor": "addressDef", "type": "object", "properties": {"city": {"type": "string"}}}},
        "properties": {
            "address": {"$ref": "#/$defs/address"},
            "contactMethod": {"type": "string", "enum": ["phone", "email"]},
            "phone": {"type": "string"},
            "email": {"type": "string"},
        },
        "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
        "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
        "then": {"required": ["phone"]},
        "else": {"required": ["email"]},
        "additionalProperties": False,
    },
}


def _tools(bus: InMemorySubscriptionBus) -> dict[str, Tool]:
    simple = _answering(_text("This is a simple text response for testing."))
    return {
        "test_simple_text": simple,  # first: http-header-validation calls the first tool, without arguments
        "test_image_content": _answering(_image()),
        "test_audio_content": _answering(types.AudioContent(data=SILENCE, mime_type="audio/wav")),
        "test_embedded_resource": _answering(_embedded("test://embedded-resource", "text/plain", "An embedded one.")),
        "test_multiple_content_types": _answering(
            _text("Multiple content types test:"),
            _image(),
            _embedded("test://mixed-content-resource", "application/json", '{"test":"data","value":123}'),
        ),
        "test_error_handling": _answering(_text("This tool intentionally returns an error"), is_error=True),
        "test_custom_header": simple,
        "json_schema_2020_12_tool": simple,
        "test_tool_with_logging": _log_three_times,
        "test_logging_tool": _log_three_times,
        "test_tool_with_progress": _report_progress,
        "test_trigger_tool_change": _publishing(bus, ToolsListChanged()),
        "test_trigger_prompt_change": _publishing(bus, PromptsListChanged()),
        "test_sampling": _sample,
        "test_elicitation": _eliciting(USER_FORM),
        "test_elicitation_sep1034_defaults": _eliciting(DEFAULTS_FORM),
        "test_elicitation_sep1330_enums": _eliciting(ENUMS_FORM),
        **{name: _asking(rounds) for name, rounds in ROUNDS_OF.items()},
    }


# -- Resources

RESOURCES: Final[dict[str, types.TextResourceContents | types.BlobResourceContents]] = {
    contents.uri: contents
    for contents in (
        types.TextResourceContents(uri="test://static-text", mime_type="text/plain", text="A static text resource."),
        types.BlobResourceContents(uri="test://static-binary", mime_type="image/png", blob=PIXEL),
        types.TextResourceContents(uri="test://template/123/data", mime_type="application/json", text='{"id":"123"}'),
    )
}


async def _list_resources(_: Context, __: types.PaginatedRequestParams | None) -> types.ListResourcesResult:
    return types.ListResourcesResult(
        resources=[
            types.Resource(uri=uri, name=uri, mime_type=contents.mime_type)
            for uri, contents in RESOURCES.items()
            if "template" not in uri
        ]
    )


async def _list_templates(_: Context, __: types.PaginatedRequestParams | None) -> types.ListResourceTemplatesResult:
    template = types.ResourceTemplate(uri_template="test://template/{id}/data", name="template")
    return types.ListResourceTemplatesResult(resource_templates=[template])


async def _read_resource(_: Context, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
    if params.uri not in RESOURCES:
        raise MCPError(types.INVALID_PARAMS, "Resource not found", {"uri": params.uri})
    return types.ReadResourceResult(contents=[RESOURCES[params.uri]])


async def _accept(_: Context, __: types.RequestParams) -> types.EmptyResult:
    return types.EmptyResult()


# -- Prompts

ARGUMENTS_OF: Final = {
    "test_simple_prompt": [],
    "test_prompt_with_arguments": ["arg1", "arg2"],
    "test_prompt_with_embedded_resource": ["resourceUri"],
    "test_prompt_with_image": [],
    "test_input_required_result_prompt": [],
}


async def _list_prompts(_: Context, __: types.PaginatedRequestParams | None) -> types.ListPromptsResult:
    return types.ListPromptsResult(
        prompts=[
            types.Prompt(
                name=name,
                description=f"The suite's {name}",
                arguments=[types.PromptArgument(name=argument, required=True) for argument in arguments],
            )
            for name, arguments in ARGUMENTS_OF.items()
        ]
    )


async def _get_prompt(
    ctx: Context, params: types.GetPromptRequestParams
) -> types.GetPromptResult | types.InputRequiredResult:
    given = params.arguments or {}
    content: list[types.ContentBlock]
    match params.name:
        case "test_simple_prompt":
            content = [_text("This is a simple prompt for testing.")]
        case "test_prompt_with_arguments":
            content = [_text(f"Prompt with arguments: arg1='{given['arg1']}', arg2='{given['arg2']}'")]
        case "test_prompt_with_embedded_resource":
            content = [_embedded(given["resourceUri"], "text/plain", "For testing."), _text("Process the resource.")]
        case "test_prompt_with_image":
            content = [_image(), _text("Please analyze the image above.")]
        case "test_input_required_result_prompt":
            if question := _next_question(ctx, params, PROMPT_ROUNDS):
                return question
            content = [_text("A prompt that knows its context.")]
        case _:
            raise MCPError(types.INVALID_PARAMS, "Unknown prompt")
    return types.GetPromptResult(messages=[types.PromptMessage(role="user", content=block) for block in content])


async def _complete(_: Context, params: types.CompleteRequestParams) -> types.CompleteResult:
    return types.CompleteResult(completion=types.Completion(values=[params.argument.value + "ing"]))


# -- The server


def fixture_server() -> Server:
    """Return a server that can pass every required scenario of 2025-11-25 and 2026-07-28."""
    bus = InMemorySubscriptionBus()
    tools = _tools(bus)

    async def list_tools(_: Context, __: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        return types.ListToolsResult(
            tools=[
                types.Tool(
                    name=name,
                    description=f"The suite's {name}",
                    input_schema=INPUT_SCHEMA_OF.get(name, _object()),
                )
                for name in tools
            ]
        )

    async def call_tool(ctx: Context, call: ToolParams) -> types.CallToolResult | types.InputRequiredResult:
        if call.name not in tools:
            # Not a result with isError: two scenarios would mistake it for an answer of the tool they look for.
            raise MCPError(types.INVALID_PARAMS, "Unknown tool")
        return await tools[call.name](ctx, call)

    server = Server(
        "conformance-fixtures",
        version="1",
        cache_hints={method: CacheHint(ttl_ms=1_000, scope="public") for method in get_args(CacheableMethod)},
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=_list_resources,
        on_list_resource_templates=_list_templates,
        on_read_resource=_read_resource,
        on_subscribe_resource=_accept,
        on_unsubscribe_resource=_accept,
        on_subscriptions_listen=ListenHandler(bus),
        on_list_prompts=_list_prompts,
        on_get_prompt=_get_prompt,
        on_completion=_complete,
    )
    server.add_request_handler("logging/setLevel", types.SetLevelRequestParams, _accept)
    server.middleware.append(RequestStateBoundary(RequestStateSecurity.ephemeral(), default_audience=server.name))
    return server
