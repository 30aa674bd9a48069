"""Handoffs as resources: all that are open, what an agent has received and sent, and a single handoff."""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import orjson
from asyncpg import Record

from handoff.context import Call
from handoff.encoding import from_cursor, that_fit, to_cursor
from handoff.errors import Forbidden, NotFound, handoff_not_found
from handoff.model import HandoffState
from handoff.resources.contract import CursorArg, LimitArg, NoQuery, Query, Resource
from handoff.store import briefs, handoffs, inbox, lists, waiting
from handoff.store.connect import Connection, connection
from handoff.store.lists import Reading
from handoff.views import cut_view, handoff_view, handoffs_page, inbox_position, inbox_view, list_of

_ID_MAX = 2**63 - 1
_ID = re.compile(r"[1-9][0-9]{0,14}")  # no leading zeros, so each handoff has one URI


class OpenQuery(Query):
    """Chooses between those on offer and those that are held, and pages."""

    state: waiting.Which = "offered"
    cursor: CursorArg = None
    limit: LimitArg = 20


class InboxQuery(Query):
    """Pages through an inbox."""

    cursor: CursorArg = None
    limit: LimitArg = 20


class SentQuery(Query):
    """Filters by state, and pages."""

    state: HandoffState | None = None
    cursor: CursorArg = None
    limit: LimitArg = 20


async def list_open(call: Call, _: dict[str, str], query: OpenQuery) -> dict[str, Any]:
    """A page of the open handoffs that the caller may see, their texts cut."""
    given = from_cursor(query.cursor, datetime, int) if query.cursor is not None else waiting.START
    async with connection(call.app.pool) as conn:
        rows, more = await waiting.page(
            conn, query.state, after=(given[0], given[1]), viewer=call.caller.viewer(None), limit=query.limit
        )
    shown = that_fit([cut_view(row, call.caller.agent) for row in rows], call.app.settings.page_bytes_max)
    page: dict[str, Any] = {"handoffs": shown}
    if len(shown) < len(rows):
        more = waiting.position(query.state, rows[len(shown) - 1])
    if more is not None:
        page["next_cursor"] = to_cursor(*more)
    return page


async def read_inbox(call: Call, path: dict[str, str], query: InboxQuery) -> dict[str, Any]:
    """A page of the inbox, highest priority first. Raises Forbidden when it belongs to another agent."""
    _check_own(call, path["agent"], "inbox")
    after, _ = inbox_position(query.cursor)
    bytes_max = call.app.settings.page_bytes_max

    async def read(conn: Connection, reading: Reading) -> tuple[Sequence[Record], None]:
        if reading == "outline":
            return await inbox.outline(conn, path["agent"], after=after, limit=query.limit + 1), None
        return (await inbox.read(conn, path["agent"], after=after, limit=query.limit + 1)).rows, None

    def show(rows: Sequence[Record], _: tuple[Any, ...] | None) -> dict[str, Any]:
        return inbox_view(rows, path["agent"], query.limit, bytes_max)

    page, _ = await list_of(call, "inbox", [path["agent"], query.limit, bytes_max], read, show)
    return page


async def read_handoff(call: Call, path: dict[str, str], _: NoQuery) -> dict[str, Any]:
    """The handoff. Raises NotFound when the caller may not see it."""
    async with connection(call.app.pool) as conn:
        row = await _seen(conn, call, path)
    trace = row["traceparent"]
    return handoff_view(row, call.caller.agent) | ({"trace_id": trace.split("-")[1]} if trace else {})


async def read_accepted_brief(call: Call, path: dict[str, str], _: NoQuery) -> dict[str, Any]:
    """The brief that the last accept_handoff returned. Raises NotFound without one, and to who may not read the session."""
    async with connection(call.app.pool) as conn:
        row = await _seen(conn, call, path)
        may_read = call.caller.viewer(None) is None or row["sees_session"]
        kept = await briefs.last(conn, row["id"]) if may_read else None
    if kept is None:
        raise NotFound(
            "brief_not_found",
            f"There is no brief of handoff {row['id']} that you may read.",
            "One is kept when the handoff is accepted. The caller must be able to read the session; get_context has its "
            "brief as it is now.",
        )
    about = {"handoff_id": row["id"], **{name: kept[name] for name in ("token", "agent", "at")}}
    return about | {"brief": orjson.loads(kept["brief"])}


async def _seen(conn: Connection, call: Call, path: dict[str, str]) -> Record:
    """The handoff. Raises NotFound when the caller may not see it."""
    if not _ID.fullmatch(path["id"]):
        raise NotFound(
            "handoff_not_found",
            "This URI has no handoff's id, which is a whole number without leading zeros.",
            "Correct the id. get_inbox lists the handoffs that are open for you.",
        )
    handoff_id, viewer = int(path["id"]), call.caller.viewer(None)
    row = await handoffs.find(conn, handoff_id, viewer)
    if row is None or not handoffs.may_see(row, viewer):
        raise handoff_not_found(handoff_id)
    return row


async def read_sent(call: Call, path: dict[str, str], query: SentQuery) -> dict[str, Any]:
    """A page of the handoffs that an agent has offered, newest first. Raises Forbidden when it is another agent."""
    _check_own(call, path["agent"], "sent")
    before: int = from_cursor(query.cursor, int)[0] if query.cursor is not None else _ID_MAX
    bytes_max = call.app.settings.page_bytes_max

    async def read(conn: Connection, reading: Reading) -> tuple[Sequence[Record], tuple[Any, ...] | None]:
        rows, last = await lists.sent(
            conn, path["agent"], before=before, limit=query.limit, state=query.state, reading=reading
        )
        return rows, None if last is None else (last,)

    def show(rows: Sequence[Record], last: tuple[Any, ...] | None) -> dict[str, Any]:
        shown = handoffs_page(rows, path["agent"], bytes_max)
        page: dict[str, Any] = {"handoffs": shown}
        if len(shown) < len(rows):
            last = (rows[len(shown) - 1]["id"],)
        if last is not None:
            page["next_cursor"] = to_cursor(*last)
        return page

    page, _ = await list_of(call, "sent", [path["agent"], bytes_max], read, show)
    return page


def _check_own(call: Call, agent: str, what: str) -> None:
    """Raise Forbidden when the caller is another agent and may not see everything."""
    viewer = call.caller.viewer(agent)
    if viewer not in (None, agent):
        raise Forbidden(
            "agent_mismatch",
            f"What {agent!r} has received and sent is not yours to read; your token is for {viewer!r}.",
            f"Read handoff://agents/{viewer}/{what} instead.",
        )


OPEN = Resource(
    "handoff://handoffs",
    "handoffs",
    "Open handoffs that you may see: those on offer, longest waiting first; with state=held, by the end of their lease.",
    OpenQuery,
    list_open,
)
INBOX = Resource(
    "handoff://agents/{agent}/inbox",
    "inbox",
    "Handoffs offered to an agent or held by it, highest priority first. Can be subscribed to.",
    InboxQuery,
    read_inbox,
    is_subscribable=True,
)
SENT = Resource(
    "handoff://agents/{agent}/sent",
    "sent",
    "Handoffs that an agent has offered, newest first, and what became of each.",
    SentQuery,
    read_sent,
)
HANDOFF = Resource(
    "handoff://handoffs/{id}", "handoff", "One handoff. Can be subscribed to.", NoQuery, read_handoff, is_subscribable=True
)
ACCEPTED_BRIEF = Resource(
    "handoff://handoffs/{id}/brief",
    "accepted_brief",
    "The brief that accept_handoff returned, as it was then.",
    NoQuery,
    read_accepted_brief,
)
