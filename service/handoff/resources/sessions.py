"""Sessions as resources: lists of them, a single one, and its events."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any

from asyncpg import Record
from pydantic import Field, model_validator

from handoff.configuration import POLICY_CHARS_MAX
from handoff.context import Call
from handoff.encoding import from_cursor, that_fit, to_cursor
from handoff.model import AGENT_CHARS_MAX, NAME_PATTERN, SessionStatus
from handoff.resources.contract import CursorArg, LimitArg, NoQuery, Query, Resource, TimeArg
from handoff.store import events, lists
from handoff.store.connect import Connection, snapshot
from handoff.store.lists import Reading
from handoff.views import list_of, page_of

_AgentArg = Annotated[str | None, Field(max_length=AGENT_CHARS_MAX, pattern=NAME_PATTERN)]


class AgentSessionsQuery(Query):
    """Filters by status, owner, creator, policy, time of creation and of the last activity, and pages."""

    status: SessionStatus | None = None
    owner: _AgentArg = None
    created_by: _AgentArg = None
    retention_policy: Annotated[str | None, Field(max_length=POLICY_CHARS_MAX, pattern=NAME_PATTERN)] = None
    since: TimeArg | None = None
    until: TimeArg | None = None
    active_since: TimeArg | None = None
    cursor: CursorArg = None
    limit: LimitArg = 20

    @model_validator(mode="after")
    def _ends_after_it_begins(self) -> "AgentSessionsQuery":
        if self.since is not None and self.until is not None and self.until <= self.since:
            raise ValueError("until must be later than since")
        return self


class SessionsQuery(AgentSessionsQuery):
    """Filters by an agent that takes part, too."""

    agent: _AgentArg = None


class LifecycleQuery(Query):
    """Pages through events."""

    cursor: CursorArg = None
    limit: LimitArg = 50


async def list_sessions(call: Call, _: dict[str, str], query: SessionsQuery) -> dict[str, Any]:
    """A page of the sessions that the caller may read, newest first."""
    return await _page(call, query, query.agent)


async def list_sessions_of_agent(call: Call, path: dict[str, str], query: AgentSessionsQuery) -> dict[str, Any]:
    """A page of the sessions that an agent takes part in and the caller may read, newest first."""
    return await _page(call, query, path["agent"])


async def read_session(call: Call, path: dict[str, str], _: NoQuery) -> dict[str, Any]:
    """The session and how it stands. Raises NotFound when the caller may not read it."""
    settings = call.app.settings
    async with snapshot(call.app.pool) as conn:
        row = await lists.one(conn, path["key"], call.caller.viewer(None), timedelta(seconds=settings.archive_after_s))
    return lists.view(row, settings.session_entries_max)


async def read_lifecycle(call: Call, path: dict[str, str], query: LifecycleQuery) -> dict[str, Any]:
    """A page of the session's events, oldest first. Raises NotFound when the caller may not read the session."""
    after: int = from_cursor(query.cursor, int)[0] if query.cursor is not None else 0

    async def read(conn: Connection, session: Record) -> dict[str, Any]:
        rows = await events.of_session(conn, session["id"], after=after, limit=query.limit + 1)
        fields = ("id", "kind", "agent", "handoff_id", "at", "data")
        found = [{name: row[name] for name in fields if row[name] is not None} for row in rows[: query.limit]]
        shown = that_fit(found, call.app.settings.page_bytes_max)
        page: dict[str, Any] = {"session_key": path["key"], "events": shown}
        if len(rows) > len(shown):
            page["next_cursor"] = to_cursor(shown[-1]["id"])
        return page

    return await page_of(call, path["key"], "session-lifecycle", query, read)


async def _page(call: Call, query: AgentSessionsQuery, agent: str | None) -> dict[str, Any]:
    settings = call.app.settings
    at: list[Any] = from_cursor(query.cursor, datetime, int) if query.cursor is not None else [*lists.NEWEST]
    filters = lists.Filters(
        status=query.status,
        agent=agent,
        owner=query.owner,
        created_by=query.created_by,
        retention_policy=query.retention_policy,
        since=query.since or lists.EVER,
        until=query.until or lists.NEWEST[0],
        active_since=query.active_since,
    )

    async def read(conn: Connection, reading: Reading) -> tuple[Sequence[Record], tuple[Any, ...] | None]:
        return await lists.page(
            conn,
            filters,
            before=(at[0], at[1]),
            limit=query.limit,
            viewer=call.caller.viewer(None),
            archive_after=timedelta(seconds=settings.archive_after_s),
            reading=reading,
        )

    def show(rows: Sequence[Record], last: tuple[Any, ...] | None) -> dict[str, Any]:
        shown = that_fit([lists.view(row, settings.session_entries_max) for row in rows], settings.page_bytes_max)
        page: dict[str, Any] = {"sessions": shown}
        if len(shown) < len(rows):
            last = (rows[len(shown) - 1]["created_at"], rows[len(shown) - 1]["id"])
        if last is not None:
            page["next_cursor"] = to_cursor(*last)
        return page

    asked = [settings.archive_after_s, settings.session_entries_max, settings.page_bytes_max]
    page, rows = await list_of(call, "sessions", asked, read, show)
    for session, row in zip(page["sessions"], rows, strict=False):  # the page may end earlier, by its bytes
        session["idle_s"] = lists.idle_s(row)
    return page


SESSIONS = Resource(
    "handoff://sessions", "sessions", "Sessions that you may read, newest first.", SessionsQuery, list_sessions
)
SESSION = Resource(
    "handoff://sessions/{key}", "session", "One session: idle time, due changes, open handoffs, size.", NoQuery, read_session
)
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
