"""A session's context as resources: its entries, page by page, and its summary."""

from typing import Annotated, Any

from pydantic import Field

from handoff.context import Call
from handoff.encoding import from_cursor, to_cursor
from handoff.errors import Invalid
from handoff.model import SEQUENCE_MAX, EntryType, Mark
from handoff.resources.contract import LimitArg, NoQuery, Query, Resource
from handoff.store import entries, sessions
from handoff.store.connect import snapshot
from handoff.views import entries_page, summary_of


class ContextQuery(Query):
    """Pages through entries after a sequence number, or after a cursor, which takes precedence.

    Filters by type or, among valid entries, by mark. An offset continues the content of the first entry.
    """

    after: Annotated[int, Field(ge=0, le=SEQUENCE_MAX)] = 0
    cursor: Annotated[str | None, Field(max_length=200)] = None
    offset: Annotated[int, Field(ge=0, le=SEQUENCE_MAX)] = 0
    limit: LimitArg = 20
    type: EntryType | None = None
    only: Mark | None = None


async def read_context(call: Call, path: dict[str, str], query: ContextQuery) -> dict[str, Any]:
    """A page of the session's entries, oldest first. Raises NotFound when the caller may not read the session."""
    if query.type is not None and query.only is not None:
        raise Invalid("invalid_arguments", "type and only can't be combined.", "Repeat the request with one of the two.")
    after: int = from_cursor(query.cursor, int)[0] if query.cursor is not None else query.after
    async with snapshot(call.app.pool) as conn:
        session = await sessions.see(conn, path["key"], call.caller.viewer(None))
        rows = await entries.page(
            conn,
            session,
            after=after,
            limit=1 if query.offset else query.limit,
            bytes_max=call.app.settings.page_bytes_max,
            type_=query.type,
            mark=query.only,
        )
    shown = entries_page(rows, call.app.settings.page_bytes_max, query.offset)
    page: dict[str, Any] = {"session_key": path["key"], "entries": shown}
    if shown and shown[-1]["sequence"] < session["last_sequence"]:
        page["next_cursor"] = to_cursor(shown[-1]["sequence"])
    return page


async def read_summary(call: Call, path: dict[str, str], _: NoQuery) -> dict[str, Any]:
    """The session's summary. Raises NotFound when the caller may not read the session."""
    return await summary_of(call.app, path["key"], call.caller.viewer(None), reader=call.caller.agent or "")


CONTEXT = Resource("handoff://context/{key}", "context", "A session's entries, oldest first.", ContextQuery, read_context)
SUMMARY = Resource(
    "handoff://summary/{key}",
    "summary",
    "A session in short: participants, handoffs, size, duration and key points.",
    NoQuery,
    read_summary,
)
