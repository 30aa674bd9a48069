"""A session's context as resources: its entries, page by page, and its summary."""

from typing import Annotated, Any, Literal

from asyncpg import Record
from pydantic import Field, model_validator

from handoff.context import Call
from handoff.encoding import from_cursor, to_cursor
from handoff.model import AGENT_CHARS_MAX, NAME_PATTERN, SEQUENCE_MAX, EntryType, Mark
from handoff.resources.contract import LimitArg, NoQuery, Query, Resource, TimeArg
from handoff.store import entries
from handoff.store.connect import Connection
from handoff.views import entries_page, page_of, summary_of


class ContextQuery(Query):
    """Pages through entries after a sequence number, or from a cursor on.

    Filters by type, author and time of writing or, among valid entries, by mark. An offset continues the content of the
    first entry.
    """

    after: Annotated[int, Field(ge=0, le=SEQUENCE_MAX)] = 0
    cursor: Annotated[str | None, Field(max_length=200)] = None
    offset: Annotated[int, Field(ge=0, le=SEQUENCE_MAX)] = 0
    limit: LimitArg = 20
    order: Literal["oldest", "newest"] = "oldest"  # first
    type: EntryType | None = None
    only: Mark | None = None
    author: Annotated[str | None, Field(max_length=AGENT_CHARS_MAX, pattern=NAME_PATTERN)] = None
    since: TimeArg | None = None
    until: TimeArg | None = None

    @model_validator(mode="after")
    def _go_together(self) -> "ContextQuery":
        if self.type is not None and self.only is not None:
            raise ValueError("type and only can't be combined")
        if self.offset and self.order == "newest":
            raise ValueError("offset needs order=oldest")
        if self.since is not None and self.until is not None and self.until <= self.since:
            raise ValueError("until must be later than since")
        return self


async def read_context(call: Call, path: dict[str, str], query: ContextQuery) -> dict[str, Any]:
    """A page of the session's entries. Raises NotFound when the caller may not read the session."""
    position: int | None = from_cursor(query.cursor, int)[0] if query.cursor is not None else None
    newest_first = query.order == "newest"
    bytes_max = call.app.settings.page_bytes_max

    async def read(conn: Connection, session: Record) -> dict[str, Any]:
        rows, last = await entries.filtered(
            conn,
            session,
            entries.Filters(query.type, query.only, query.author, query.since, query.until),
            after=query.after if newest_first or position is None else max(0, position),
            before=position if newest_first and position is not None else SEQUENCE_MAX,
            newest_first=newest_first,
            limit=1 if query.offset else query.limit,
            bytes_max=bytes_max,
        )
        shown = entries_page(rows, bytes_max, query.offset)
        page: dict[str, Any] = {"session_key": path["key"], "entries": shown}
        if len(shown) < len(rows):
            last = shown[-1]["sequence"]
        if query.cursor is None:
            page["totals"] = entries.totals(session)
        if last is not None:
            page["next_cursor"] = to_cursor(last)
        return page

    return await page_of(call, path["key"], "context", query, read)


async def read_summary(call: Call, path: dict[str, str], _: NoQuery) -> dict[str, Any]:
    """The session's summary. Raises NotFound when the caller may not read the session."""
    return await summary_of(call.app, path["key"], call.caller.viewer(None), reader=call.caller.agent or "")


CONTEXT = Resource(
    "handoff://context/{key}", "context", "A session's entries, oldest or newest first.", ContextQuery, read_context
)
SUMMARY = Resource(
    "handoff://summary/{key}",
    "summary",
    "A session in short: participants, handoffs, size, duration and key points.",
    NoQuery,
    read_summary,
)
