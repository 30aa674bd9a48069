"""Handoffs as resources: an agent's inbox, and a single handoff."""

import re
from typing import Any

from handoff.context import Call
from handoff.errors import Forbidden, handoff_not_found
from handoff.resources.contract import CursorArg, LimitArg, NoQuery, Query, Resource
from handoff.store import handoffs, inbox
from handoff.store.connect import connection
from handoff.views import handoff_view, inbox_position, inbox_view

_ID = re.compile(r"[1-9][0-9]{0,14}")  # no leading zeros, so each handoff has one URI


class InboxQuery(Query):
    """Pages through an inbox."""

    cursor: CursorArg = None
    limit: LimitArg = 20


async def read_inbox(call: Call, path: dict[str, str], query: InboxQuery) -> dict[str, Any]:
    """A page of the inbox, highest priority first. Raises Forbidden when it belongs to another agent."""
    viewer = call.caller.viewer(path["agent"])
    if viewer not in (None, path["agent"]):
        raise _inbox_of_another(path["agent"], viewer)
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


def _inbox_of_another(agent: str, viewer: str | None) -> Forbidden:
    """The inbox belongs to an agent other than the caller's."""
    return Forbidden(
        "agent_mismatch",
        f"The inbox of {agent!r} is not yours; your token is for {viewer!r}.",
        f"Read handoff://agents/{viewer}/inbox instead.",
    )


INBOX = Resource(
    "handoff://agents/{agent}/inbox",
    "inbox",
    "Handoffs offered to an agent or held by it, highest priority first. Can be subscribed to.",
    InboxQuery,
    read_inbox,
    is_subscribable=True,
)
HANDOFF = Resource(
    "handoff://handoffs/{id}", "handoff", "One handoff. Can be subscribed to.", NoQuery, read_handoff, is_subscribable=True
)
