"""Announces offers over stdio to a client that makes a turn of them, which is called a channel.

Claude Code has channels (https://code.claude.com/docs/en/channels-reference): a server with the experimental capability
claude/channel sends notifications, whose `content` the model is shown, with the names in `meta` as attributes.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, cast

import mcp_types as types
import structlog
from asyncpg import Record

from handoff.context import App
from handoff.errors import Unavailable
from handoff.store import inbox
from handoff.store.connect import connection
from handoff.views import INBOX_START

log = structlog.get_logger(__name__)

CAPABILITY: Final = "claude/channel"
METHOD: Final = "notifications/claude/channel"
_CLIENTS: Final = frozenset({"claude-code"})  # have channels without declaring it
_PAGE: Final = 20
_TOLD_MAX: Final = 10_000
_AGAIN_S: Final = 60.0  # looks again without being woken: the agent may have declared other capabilities
_PAUSE_S: Final = 5.0  # while the database does not answer


def takes_channel(params: dict[str, Any] | None) -> bool:
    """Whether the client that sends `initialize` with these parameters has channels."""
    given = params or {}
    info, capabilities = given.get("clientInfo"), given.get("capabilities")
    if isinstance(info, dict) and cast("dict[str, Any]", info).get("name") in _CLIENTS:
        return True
    experimental = cast("dict[str, Any]", capabilities).get("experimental") if isinstance(capabilities, dict) else None
    return isinstance(experimental, dict) and CAPABILITY in experimental


async def announce(app: App, agent: str, send: Callable[[types.JSONRPCMessage], None]) -> None:
    """Announce what the agent can accept now, and then each offer when it is made, once; until cancelled."""
    told: set[tuple[int, int]] = set()
    since: inbox.Mark | None = None  # of the first page: what has come while the others were read is read again
    topics = [f"agent:{agent}"]
    while not app.wakeups.closing:
        try:
            async with app.wakeups.waiting(topics) as rung:
                after, first = INBOX_START, None
                while True:
                    async with connection(app.pool) as conn:
                        found = await inbox.read(conn, agent, after=after, limit=_PAGE, since=since)
                    first = first or found
                    for row in found.rows:
                        if row["state"] == "offered" and (row["id"], row["lapses"]) not in told:
                            told.add((row["id"], row["lapses"]))
                            send(_announcement(row))
                            log.info("channel.announced", handoff=row["id"], agent=agent)
                    if len(found.rows) < _PAGE:
                        break
                    after = found.rows[-1]["priority"], found.rows[-1]["id"]
                since = first.mark
                if len(told) > _TOLD_MAX:
                    told.clear()
                wanted = [f"agent:{agent}", *(f"capability:{name}" for name in first.capabilities)]
                if wanted != topics:
                    topics = wanted
                    continue
                with suppress(TimeoutError):
                    async with asyncio.timeout(_AGAIN_S):
                        await rung.wait()
        except Unavailable:
            await asyncio.sleep(_PAUSE_S)


def _announcement(row: Record) -> types.JSONRPCNotification:
    """What the model is shown of an offer: nothing of it is a text that another agent wrote."""
    number = row["id"]
    content = (
        f"Handoff {number} is offered to you by {row['sender']}. get_inbox has its instructions. Call accept_handoff with "
        f"handoff_id={number} to take it, or resolve_handoff with action=reject and the reason as note."
    )
    if row["target_agent"] is None:
        content = (
            f"Handoff {number} is offered by {row['sender']} to any agent with the capability {row['target_capability']}. "
            f"get_inbox has its instructions. Call accept_handoff with handoff_id={number} to take it."
        )
    about = {"handoff_id": str(number), "session_key": row["session_key"], "sender": row["sender"]}
    return types.JSONRPCNotification(jsonrpc="2.0", method=METHOD, params={"content": content, "meta": about})
