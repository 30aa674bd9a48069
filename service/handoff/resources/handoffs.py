"""Handoffs, read: an agent's inbox, one handoff."""

import re
from typing import Any

from handoff.context import Call
from handoff.encoding import from_cursor
from handoff.errors import Forbidden, handoff_not_found
from handoff.resources.contract import CursorArg, LimitArg, NoQuery, Query, Resource
from handoff.store import handoffs
from handoff.store.connect import snapshot
from handoff.views import INBOX_START, handoff_view, inbox_page

_PRIORITIES = range(10)
_ID = re.compile(r"[1-9][0-9]{0,14}")  # one way to write each


class InboxQuery(Query):
    cursor: CursorArg = None
    limit: LimitArg = 20


async def read_inbox(call: Call, path: dict[str, str], query: InboxQuery) -> dict[str, Any]:
    viewer = call.caller.viewer(path["agent"])
    if viewer not in (None, path["agent"]):
        raise inbox_of_another(path["agent"])
    after = tuple(from_cursor(query.cursor, _PRIORITIES, int)) if query.cursor is not None else INBOX_START
    return await inbox_page(call.app, path["agent"], after, query.limit)


async def read_handoff(call: Call, path: dict[str, str], _: NoQuery) -> dict[str, Any]:
    handoff_id = int(path["id"]) if _ID.fullmatch(path["id"]) else 0
    async with snapshot(call.app.pool) as conn:
        row = await handoffs.find(conn, handoff_id)
        if row is None or not await handoffs.may_see(conn, row, call.caller.viewer(None)):
            raise handoff_not_found(handoff_id)
    return handoff_view(row)


def inbox_of_another(agent: str) -> Forbidden:
    """An inbox is its agent's own."""
    return Forbidden("agent_mismatch", f"The inbox of {agent!r} is not yours.", "Read the inbox of your token's agent.")


INBOX = Resource(
    "handoff://agents/{agent}/inbox",
    "inbox",
    "Handoffs offered to an agent or held by it, urgent first. Can be subscribed to.",
    InboxQuery,
    read_inbox,
    is_subscribable=True,
)
HANDOFF = Resource(
    "handoff://handoffs/{id}", "handoff", "One handoff. Can be subscribed to.", NoQuery, read_handoff, is_subscribable=True
)
