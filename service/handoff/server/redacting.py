"""Takes secrets out of what callers write and others read, before anything is made of it: size, hash or fingerprint."""

import asyncio
from collections import Counter
from typing import Any, Final, TypeVar

import structlog
from pydantic import BaseModel

from handoff import redaction
from handoff.context import Call
from handoff.secret_patterns import PASSWORD
from handoff.server.arguments import validated
from handoff.store import sessions
from handoff.store.connect import connection
from handoff.telemetry import metrics
from handoff.tools.contract import Arguments, Tool, fields_read_by_others

A = TypeVar("A", bound=Arguments)
M = TypeVar("M", bound=BaseModel)

_NONE: Final[Counter[str]] = Counter()

log = structlog.get_logger(__name__)


def may_hold_secret(args: Arguments) -> bool:
    """Whether `without_secrets` has to look at these arguments. Most writes end here, after 1 or 2 µs."""
    return redaction.may_hold_secret(args.read_by_others())


async def without_secrets(call: Call, args: A) -> tuple[A, Counter[str]]:
    """Return the arguments without secrets, and how many of each kind they had, unless the session's policy keeps them.

    A long text is redacted in steps, between which other calls go on. Raises Invalid when markers make a text too long.
    """
    if not redaction.is_compiled():
        await asyncio.to_thread(redaction.compiled)
    kinds: Counter[str] = Counter()
    redacted = await _redacted_model(args, kinds)
    if not kinds or await _keeps_secrets(call, args):
        return args, _NONE
    return validated(type(args), redacted.model_dump(exclude_unset=True)), kinds


def redacted(tool: Tool[Any], result: dict[str, Any], kinds: Counter[str], session: str | None) -> dict[str, Any]:
    """Count and log the secrets that a tool has left out of what it committed; return its result, which then says so."""
    if not result.get("replayed"):
        for kind, count in kinds.items():
            metrics.SECRETS_REDACTED.add(count, kind)
        log.info("secrets.redacted", tool=tool.name, session=session, kinds=dict(kinds))
    return result | {"secrets_redacted": dict(kinds)}


async def _keeps_secrets(call: Call, args: Arguments) -> bool:
    given = args.__dict__
    async with connection(call.app.pool) as conn:
        return await sessions.keeps_secrets(
            conn,
            policy=given.get("retention_policy"),
            session_key=given.get("session_key"),
            handoff_id=given.get("handoff_id"),
        )


async def _redacted_model(args: M, kinds: Counter[str]) -> M:
    changed: dict[str, Any] = {}
    for name in fields_read_by_others(type(args)):
        value = args.__dict__[name]
        if type(value) is list:
            changed[name] = [await _redacted_model(item, kinds) for item in value]
        elif value is not None:
            changed[name] = await _redacted_value(value, kinds)
    return args.model_copy(update=changed)


async def _redacted_value(value: Any, kinds: Counter[str]) -> Any:
    """A text, or whatever an object of JSON holds, without secrets."""
    if isinstance(value, str):
        return await _redacted_text(value, kinds)
    if isinstance(value, list):
        return [await _redacted_value(item, kinds) for item in value]
    if isinstance(value, dict):
        return {name: await _redacted_member(name, item, kinds) for name, item in value.items()}
    return value


async def _redacted_member(name: str, value: Any, kinds: Counter[str]) -> Any:
    """The value of a member of an object, whose name may say that it is a password."""
    before = kinds.total()
    found = await _redacted_value(value, kinds)
    if isinstance(value, str) and kinds.total() == before and redaction.names_secret(name, value):
        kinds[PASSWORD] += 1
        return redaction.marker(PASSWORD)
    return found


async def _redacted_text(text: str, kinds: Counter[str]) -> str:
    for step in redaction.steps(text):
        if step is not None:
            kinds += step.kinds
            return step.text
        await asyncio.sleep(0)
    return text
