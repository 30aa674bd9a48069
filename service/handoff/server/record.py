"""The record of a call when it has ended: its metric, its spans and its log line, the same for every method.

What a call is about is its Subject. Whether it failed, and whose fault that was, decides the level of its line and the
status of its span.
"""

from dataclasses import dataclass
from time import monotonic
from typing import Final, Literal

import structlog
from mcp_types import (
    HEADER_MISMATCH,
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    UNSUPPORTED_PROTOCOL_VERSION,
)

from handoff.context import App
from handoff.errors import HandoffError, Unavailable
from handoff.telemetry import agents, calls, metrics, spans
from handoff.telemetry.calls import Arrival, AttributeValue
from handoff.telemetry.logs import may_pass, write

log = structlog.get_logger(__name__)

TOOLS_CALL: Final = "tools/call"
RESOURCES_READ: Final = "resources/read"
PROMPTS_GET: Final = "prompts/get"
_PROTOCOL_VERSION_KEY: Final = "io.modelcontextprotocol/protocolVersion"
CANCELLED: Final = "cancelled"  # the caller has gone or given up, which is no error: the recording rules leave it out
_TEXT_MAX: Final = 500  # characters of a caller's text in an attribute of a span
# What OpenTelemetry's conventions exclude from the errors of an MCP server and, by our own choice, the two newer codes for
# faults of a caller.
_CALLERS_FAULTS: Final = frozenset(
    {
        PARSE_ERROR,
        INVALID_REQUEST,
        METHOD_NOT_FOUND,
        INVALID_PARAMS,
        -32002,  # resource not found
        HEADER_MISMATCH,
        UNSUPPORTED_PROTOCOL_VERSION,
    }
)
JSONRPC_NAMES: Final = {
    PARSE_ERROR: "parse_error",
    INVALID_REQUEST: "invalid_request",
    METHOD_NOT_FOUND: "method_not_found",
    INVALID_PARAMS: "invalid_params",
    INTERNAL_ERROR: "internal",
    HEADER_MISMATCH: "header_mismatch",
    UNSUPPORTED_PROTOCOL_VERSION: "unsupported_protocol_version",
}
_NOTHING: Final[dict[str, AttributeValue | None]] = {}
_OUR_FAULTS: Final = frozenset({"internal", "unavailable", "overloaded"})  # as in the rules for the error budget


@dataclass(slots=True)
class Subject:
    """What a call is about, for its metric, span and log line. It holds no content."""

    method: str
    tool: str = ""
    resource: str | None = None
    prompt: str | None = None
    agent: str | None = None
    session: str | None = None
    handoff: int | str | None = None
    is_waiting: bool = False  # it waits for something to happen, so its duration must not count as slow
    changes_handoff: bool = False  # its trace is part of a handoff's story, and therefore preferred
    repeatable: Literal["as it is", "by its key", "no"] = "as it is"  # how the call can be repeated safely
    request_bytes: int = 0
    response_bytes: int | None = None
    uri: str | None = None
    rpc_code: int = 0  # the code of the JSON-RPC error that the caller receives, 0 if it receives none
    cause: str | None = None  # the class of the exception behind an error that is not the caller's


def jsonrpc_code(error: HandoffError) -> int:
    """The code of the JSON-RPC error as which an error is reported, where it is not reported as a tool's result."""
    return INTERNAL_ERROR if isinstance(error, Unavailable) or error.code == "internal" else INVALID_PARAMS


def record_call(app: App, record: calls.CallRecord, subject: Subject, arrival: Arrival, code: str) -> None:
    """Record a call that has ended. `code` is the error code that the caller receives, empty if it succeeded."""
    arrival.has_ended = True
    duration_s = monotonic() - arrival.received
    if not code or code == CANCELLED:
        error = code
    elif subject.tool:
        error = "tool_error"
    else:
        error = "" if subject.rpc_code in _CALLERS_FAULTS else str(subject.rpc_code)
    trace: tuple[int, int] | None = None
    tracer = spans.tracer()
    if tracer is not None:
        slow = not subject.is_waiting and duration_s >= app.settings.slow_call_s
        kept = tracer.decide(record, noteworthy=bool(code) or subject.changes_handoff or slow)
        metrics.CALLS_TRACED.add(1, kept)
        if kept != "no":
            trace = (record.trace_id, record.span_id)
            arrival.kept = record
            tracer.export_call(
                record,
                f"{metrics.METHOD.allowed(subject.method)} {subject.tool or subject.prompt or ''}".rstrip(),
                _attributes(subject, arrival, code),
                "" if code == CANCELLED else error,
            )
    metrics.call_ended(
        duration_s,
        trace,
        subject.method,
        subject.tool,
        error,
        code,
        arrival.transport,
        subject.resource or "",
        subject.prompt or "",
        str(subject.rpc_code) if subject.rpc_code else "",
    )
    if subject.tool:
        level = "info" if not code or code == CANCELLED else "error" if code in _OUR_FAULTS else "warning"
        if subject.agent is not None:
            agents.count(subject.agent, subject.request_bytes, is_ok=not code, is_refused=level == "warning")
        if may_pass("tool.call", level):
            write(
                level,
                "tool.call",
                {
                    "tool": subject.tool,
                    "outcome": code or "ok",
                    "duration_ms": round(duration_s * 1e3, 3),
                    "request_bytes": subject.request_bytes,
                    "response_bytes": subject.response_bytes or 0,
                    "agent": subject.agent,
                    "session": subject.session,
                    "handoff": subject.handoff,
                    "cause": subject.cause,
                    **(record.noted() if record.noted is not None else _NOTHING),
                },
            )
    elif code and code != CANCELLED:
        complain = log.error if error else log.warning
        complain(
            "request.failed",
            method=metrics.METHOD.allowed(subject.method),
            resource=subject.resource,
            prompt=subject.prompt,
            outcome=code,
            duration_ms=round(duration_s * 1e3, 3),
            agent=subject.agent,
            session=subject.session,
            handoff=subject.handoff,
            cause=subject.cause,
        )


def _attributes(subject: Subject, arrival: Arrival, code: str) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        "mcp.method.name": metrics.METHOD.allowed(subject.method),
        "network.transport": arrival.transport,
        **_of_subject(subject),
    }
    if arrival.transport == "tcp":
        attributes |= metrics.HTTP
    if code:
        attributes["handoff.error.code"] = code
    if arrival.request_id is not None:
        attributes["jsonrpc.request.id"] = str(arrival.request_id)[:_TEXT_MAX]
    version = arrival.protocol_version or (arrival.meta.get(_PROTOCOL_VERSION_KEY) if arrival.meta is not None else None)
    if isinstance(version, str):
        attributes["mcp.protocol.version"] = version[:20]
    return attributes


def _of_subject(subject: Subject) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {}
    if subject.tool:
        attributes |= {"gen_ai.tool.name": subject.tool, "gen_ai.operation.name": "execute_tool"}
    if subject.prompt is not None:
        attributes["gen_ai.prompt.name"] = subject.prompt
    if subject.rpc_code:
        attributes["rpc.response.status_code"] = str(subject.rpc_code)
    if subject.resource is not None and subject.uri is not None:
        attributes["handoff.resource"] = subject.resource
        attributes["mcp.resource.uri"] = subject.uri.split("?", 1)[0][:_TEXT_MAX]  # the query may hold what a caller wrote
    if subject.agent is not None:
        attributes["gen_ai.agent.name"] = subject.agent[:_TEXT_MAX]
    if subject.session is not None:
        attributes["gen_ai.conversation.id"] = subject.session[:_TEXT_MAX]
    return attributes
