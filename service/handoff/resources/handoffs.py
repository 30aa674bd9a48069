"""Handoffs as resources: what an agent has received and sent, and a single handoff."""

import re
from typing import Any

from handoff.context import Call
from handoff.encoding import from_cursor, to_cursor
from handoff.errors import Forbidden, handoff_not_found
from handoff.model import HandoffState
from handoff.resources.contract import CursorArg, LimitArg, NoQuery, Query, Resource
from handoff.store import handoffs, inbox, lists
from handoff.store.connect import connection
from handoff.views import handoff_view, handoffs_page, inbox_position, inbox_view

_ID_MAX = 2**63 - 1
_ID = re.compile(r"[1-9][0-9]{0,14}")  # no leading zeros, so each handoff has one URI


class InboxQuery(Query):
    """Pages through an inbox."""

    cursor: CursorArg = None
    limit: LimitArg = 20


class SentQuery(Query):
    """Filters by state, and pages."""

    state: HandoffState | None = None
    cursor: CursorArg = None
    limit: LimitArg = 20


async def read_inbox(call: Call, path: dict[str, str], query: InboxQuery) -> dict[str, Any]:
    """A page of the inbox, highest priority first. Raises Forbidden when it belongs to another agent."""
    _check_own(call, path["agent"], "inbox")
    after, _ = inbox_position(query.cursor)
    async with connection(call.app.pool) as conn:
        found = await inbox.read(conn, path["agent"], after=after, limit=query.limit + 1)
    return inbox_view(found, path["agent"], query.limit, call.app.settings.page_bytes_max)


async def read_handoff(call: Call, path: dict[str, str], _: NoQuery) -> dict[str, Any]:
    """The handoff. Raises NotFound when the caller may not see it."""
    handoff_id = int(path["id"]) if _ID.fullmatch(path["id"]) else 0
    viewer = call.caller.viewer(None)
    async with connection(call.app.pool) as conn:
        row = await handoffs.find(conn, handoff_id, viewer)
    if row is None or not handoffs.may_see(row, viewer):
        raise handoff_not_found(handoff_id)
    return handoff_view(row, call.caller.agent)


async def read_sent(call: Call, path: dict[str, str], query: SentQuery) -> dict[str, Any]:
    """A page of the handoffs that an agent has offered, newest first. Raises Forbidden when it is another agent."""
    _check_own(call, path["agent"], "sent")
    before: int = from_cursor(query.cursor, int)[0] if query.cursor is not None else _ID_MAX
    async with connection(call.app.pool) as conn:
        rows, last = await lists.sent(conn, path["agent"], before=before, limit=query.limit, state=query.state)
    shown = handoffs_page(rows, path["agent"], call.app.settings.page_bytes_max)
    page: dict[str, Any] = {"handoffs": shown}
    if len(shown) < len(rows):
        last = rows[len(shown) - 1]["id"]
    if last is not None:
        page["next_cursor"] = to_cursor(last)
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
