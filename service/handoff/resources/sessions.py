"""Sessions as resources: lists of them, a single one, and its events."""

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, Field

from handoff.context import Call
from handoff.encoding import from_cursor, that_fit, to_cursor
from handoff.model import AGENT_CHARS_MAX, NAME_PATTERN, SessionStatus
from handoff.resources.contract import CursorArg, LimitArg, NoQuery, Query, Resource
from handoff.store import events, sessions
from handoff.store.connect import snapshot


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("must be between the years 1 and 9999 in UTC") from None


SinceArg = Annotated[AwareDatetime, AfterValidator(_in_utc)]


class SessionsQuery(Query):
    """Filters by status, agent and time of creation, and pages."""

    status: SessionStatus | None = None
    agent: Annotated[str | None, Field(max_length=AGENT_CHARS_MAX, pattern=NAME_PATTERN)] = None
    since: SinceArg | None = None
    cursor: CursorArg = None
    limit: LimitArg = 20


class AgentSessionsQuery(Query):
    """Filters by status and time of creation, and pages."""

    status: SessionStatus | None = None
    since: SinceArg | None = None
    cursor: CursorArg = None
    limit: LimitArg = 20


class LifecycleQuery(Query):
    """Pages through events."""

    cursor: CursorArg = None
    limit: LimitArg = 50


async def list_sessions(call: Call, _: dict[str, str], query: SessionsQuery) -> dict[str, Any]:
    """A page of the sessions that the caller may read, newest first."""
    return await _page(call, query.agent, query.status, query.since, query.cursor, query.limit)


async def list_sessions_of_agent(call: Call, path: dict[str, str], query: AgentSessionsQuery) -> dict[str, Any]:
    """A page of the sessions that an agent takes part in and the caller may read, newest first."""
    return await _page(call, path["agent"], query.status, query.since, query.cursor, query.limit)


async def read_session(call: Call, path: dict[str, str], _: NoQuery) -> dict[str, Any]:
    """The session. Raises NotFound when the caller may not read it."""
    async with snapshot(call.app.pool) as conn:
        return sessions.view(await sessions.see(conn, path["key"], call.caller.viewer(None)))


async def read_lifecycle(call: Call, path: dict[str, str], query: LifecycleQuery) -> dict[str, Any]:
    """A page of the session's events, oldest first. Raises NotFound when the caller may not read the session."""
    after: int = from_cursor(query.cursor, int)[0] if query.cursor is not None else 0
    async with snapshot(call.app.pool) as conn:
        session = await sessions.see(conn, path["key"], call.caller.viewer(None))
        rows = await events.of_session(conn, session["id"], after=after, limit=query.limit + 1)
    fields = ("id", "kind", "agent", "handoff_id", "at", "data")
    found = [{name: row[name] for name in fields if row[name] is not None} for row in rows[: query.limit]]
    shown = that_fit(found, call.app.settings.page_bytes_max)
    page: dict[str, Any] = {"session_key": path["key"], "events": shown}
    if len(rows) > len(shown):
        page["next_cursor"] = to_cursor(shown[-1]["id"])
    return page


async def _page(
    call: Call,
    agent: str | None,
    status: SessionStatus | None,
    since: datetime | None,
    cursor: str | None,
    limit: int,
) -> dict[str, Any]:
    before = from_cursor(cursor, datetime, int) if cursor is not None else sessions.NEWEST
    async with snapshot(call.app.pool) as conn:
        rows, last = await sessions.page(
            conn,
            before=(before[0], before[1]),
            since=since or sessions.EVER,
            limit=limit,
            status=status,
            agent=agent,
            viewer=call.caller.viewer(None),
        )
    shown = that_fit([sessions.view(row) for row in rows], call.app.settings.page_bytes_max)
    page: dict[str, Any] = {"sessions": shown}
    if len(shown) < len(rows):
        last = rows[len(shown) - 1]
    if last is not None:
        page["next_cursor"] = to_cursor(last["created_at"], last["id"])
    return page


SESSIONS = Resource(
    "handoff://sessions", "sessions", "Sessions that you may read, newest first.", SessionsQuery, list_sessions
)
SESSION = Resource("handoff://sessions/{key}", "session", "One session.", NoQuery, read_session)
LIFECYCLE = Resource(
    "handoff://sessions/{key}/lifecycle",
    "session-lifecycle",
    "Events of a session and its handoffs, oldest first.",
    LifecycleQuery,
    read_lifecycle,
)
AGENT_SESSIONS = Resource(
    "handoff://agents/{agent}/sessions",
    "agent-sessions",
    "Sessions that an agent takes part in, newest first.",
    AgentSessionsQuery,
    list_sessions_of_agent,
)
