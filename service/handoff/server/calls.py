"""What happens around each call, once, for tools, resources and every other method.

`perform` opens the record of a call, runs it, translates whatever it raises, and records its metric, span and log line.
Transports (edge.py, stdio.py) and the SDK's binding (protocol.py) hand calls in and carry replies out.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

import structlog

from handoff.context import App, Call
from handoff.encoding import to_json
from handoff.errors import HandoffError, Invalid, outcome_unknown, scope_missing
from handoff.model import Caller, Scope
from handoff.resources.contract import match, parsed_query
from handoff.server.arguments import validated
from handoff.server.catalog import PROMPTS, RESOURCES, tools_of
from handoff.server.record import CANCELLED, PROMPTS_GET, RESOURCES_READ, TOOLS_CALL, Subject, jsonrpc_code, record_call
from handoff.server.redacting import may_hold_secret, redacted, without_secrets
from handoff.telemetry import calls, metrics
from handoff.telemetry.calls import Arrival

T = TypeVar("T")

log = structlog.get_logger(__name__)

metrics.METHOD.admit(TOOLS_CALL, RESOURCES_READ, PROMPTS_GET)


@dataclass(slots=True)  # not frozen: one is built for every call
class Reply:
    """A tool's reply: its structured content or its error, as JSON."""

    body: bytes
    is_error: bool


class UnknownTool(Exception):
    """The service has no tool of this name."""


class ClientGone(Exception):
    """The client went away while its call was waiting, so nobody is left to answer."""


async def call_tool(
    app: App, caller: Caller, name: str, arguments: dict[str, Any], arrival: Arrival, gone: Callable[[], Awaitable[object]]
) -> Reply:
    """Run a tool and return its reply. `gone` completes when the client goes away, which ends a call that waits.

    Raises UnknownTool and ClientGone. Every other error is in the reply: a deliberate error with its hint, a crash without
    its cause, which is only logged.
    """
    tool = tools_of(admin=app.settings.admin).get(name)
    if tool is None:
        raise UnknownTool(name)
    subject = Subject(
        TOOLS_CALL,
        name,
        agent=caller.agent,
        is_waiting=tool.waits and bool(arguments.get("wait_seconds")),
        changes_handoff=tool.changes_handoff,
        request_bytes=arrival.size_bytes,
    )
    if tool.takes_key:
        subject.repeatable = "by its key" if arguments.get("idempotency_key") else "no"

    async def run() -> bytes:
        require_scope(caller, tool.scope)
        args = validated(tool.arguments, tool.arguments.given(arguments))
        known = args.__dict__
        subject.agent = known.get("agent") or caller.agent
        subject.session = known.get("session_key")
        subject.handoff = known.get("handoff_id")
        call = Call(app, caller, arrival.received)
        secrets = None
        if tool.takes_text and app.settings.redaction and may_hold_secret(args):
            args, secrets = await without_secrets(call, args)
        running = tool.run(call, args)
        if subject.is_waiting and app.tokens is not None and arrival.headers is not None:
            running = app.tokens.unless_revoked(caller, running)
        result = await running
        return to_json(redacted(tool, result, secrets, subject.session) if secrets else result)

    performed = perform(app, subject, arrival, run)
    result = await (_unless_gone(gone, performed) if subject.is_waiting else performed)
    return Reply(result.body, is_error=True) if isinstance(result, Failure) else Reply(result, is_error=False)


async def read_resource(app: App, caller: Caller, uri: str, arrival: Arrival) -> "Content | Failure":
    """Read a resource as one recorded call. Returns its text and its MIME type, or the failure."""
    subject = Subject(RESOURCES_READ, agent=caller.agent, uri=uri)
    return await perform(app, subject, arrival, lambda: read(app, caller, uri, arrival.received, subject))


async def read(app: App, caller: Caller, uri: str, received: float, subject: Subject | None = None) -> "Content":
    """Read a resource. Raises HandoffError."""
    found = match(RESOURCES, uri)
    if found is None:
        raise Invalid(
            "resource_not_found", "No resource has this URI.", "Use a URI that fits a template in resources/templates/list."
        )
    resource, path, query = found
    if subject is not None:
        subject.resource, subject.session, subject.handoff = resource.name, path.get("key"), path.get("id")
        subject.agent = path.get("agent") or caller.agent
    require_scope(caller, resource.scope)
    args = validated(resource.query, parsed_query(query))
    value = await resource.read(Call(app, caller, received), path, args)
    body = value.encode() if isinstance(value, str) else to_json(value)
    return Content(body, resource.mime_type, resource.ttl_ms)


class Content(NamedTuple):
    """What a resource says: its text, its MIME type, and for how many milliseconds a client may keep it."""

    body: bytes
    mime_type: str
    ttl_ms: int


async def write_prompt(app: App, caller: Caller, name: str, arguments: dict[str, str], arrival: Arrival) -> "str | Failure":
    """Write a prompt as one recorded call. Returns the text of its message, or the failure."""
    subject = Subject(PROMPTS_GET, agent=caller.agent)

    async def run() -> str:
        prompt = PROMPTS.get(name)
        if prompt is None:
            raise Invalid("prompt_not_found", "No prompt has this name.", f"The prompts are {', '.join(PROMPTS)}.")
        subject.prompt = name
        require_scope(caller, "read")
        args = validated(prompt.arguments, {key: value for key, value in arguments.items() if value})
        known = args.__dict__
        subject.session, subject.handoff = known.get("session_key"), known.get("handoff_id")
        return await prompt.write(Call(app, caller, arrival.received), args)

    return await perform(app, subject, arrival, run)


async def completions(app: App, caller: Caller, prompt: str, argument: str, typed: str, received: float) -> list[str]:
    """What the value of a prompt's argument may be, from what is typed so far. Raises HandoffError."""
    found = PROMPTS.get(prompt)
    complete = found.completers.get(argument) if found is not None else None
    if complete is None:
        return []
    require_scope(caller, "read")
    return await complete(Call(app, caller, received), typed)


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that failed: the error, and the JSON that the caller receives."""

    error: HandoffError
    body: bytes


async def perform(app: App, subject: Subject, arrival: Arrival, run: Callable[[], Awaitable[T]]) -> T | Failure:
    """Run a call and record it. Any exception becomes a Failure; only cancellation is raised."""
    record = calls.begin(arrival.meta, arrival.headers)
    in_progress = metrics.WAITING_CALLS if subject.is_waiting else metrics.ACTIVE_CALLS
    if subject.tool:
        in_progress.add(1)
    code = CANCELLED
    result: T | Failure
    try:
        result = await run()
        code = ""
        if isinstance(result, bytes):
            subject.response_bytes = len(result)
    except Exception as raised:  # noqa: BLE001 - `crashed` logs it
        error = raised if isinstance(raised, HandoffError) else crashed(subject, raised)
        if error.code == "unavailable" and subject.repeatable != "as it is":
            error = outcome_unknown(has_key=subject.repeatable == "by its key")
        code = error.code
        if not subject.tool:
            subject.rpc_code = jsonrpc_code(error)
        subject.cause = _cause(raised)
        result = Failure(error, to_json({"error": error.as_dict()}))
        subject.response_bytes = len(result.body)
    finally:
        if subject.tool:
            in_progress.add(-1)
        record_call(app, record, subject, arrival, code)
        calls.leave()
    return result


async def _unless_gone(gone: Callable[[], Awaitable[object]], call: Awaitable[T]) -> T:
    """The call's result. Raises ClientGone, and cancels the call, if its client goes away first."""
    task, watch = asyncio.ensure_future(call), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for pending in (task, watch):
            pending.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


def require_scope(caller: Caller, scope: Scope) -> None:
    """Raise Forbidden if the caller's token lacks a scope. The scope `admin` includes all others here."""
    if scope not in caller.scopes and "admin" not in caller.scopes:
        raise scope_missing(scope)


def _cause(raised: Exception) -> str | None:
    """The class of what made a call fail, for the log; None if the caller did."""
    if not isinstance(raised, HandoffError):
        return type(raised).__name__
    return type(raised.__cause__).__name__ if raised.__cause__ is not None else None


def crashed(subject: Subject, raised: Exception) -> HandoffError:
    """Log a crash with its stack. The error that the caller receives says only that there was one."""
    event = "tool.failed" if subject.tool else "resource.failed" if subject.method == RESOURCES_READ else "method.failed"
    log.error(event, tool=subject.tool or None, resource=subject.resource, exc_info=raised)
    crash = HandoffError(
        "internal",
        "The service failed on this call because of a bug, which has been logged.",
        _AFTER_CRASH[subject.repeatable],
    )
    crash.retryable = subject.repeatable != "no"
    return crash


_AFTER_CRASH: Final = {
    "as it is": "Repeat the call once. If it fails again, continue without it and tell the operator.",
    "by its key": "Repeat the call once, unchanged, with the same idempotency_key. If it fails again, continue without it "
    "and tell the operator.",
    "no": "The call may have taken effect, and it had no idempotency_key. Check with get_context or get_inbox before you "
    "repeat it, and tell the operator.",
}
