"""Views that tools and resources share: briefs and summaries, both cached, and inboxes."""

from typing import Any

from asyncpg import Record

from handoff import brief, cache
from handoff.context import App
from handoff.encoding import to_cursor
from handoff.store import entries, handoffs, sessions
from handoff.store.connect import Connection, connection, snapshot
from handoff.telemetry import metrics

KEY_POINTS_MAX = 10
EXCERPT_CHARS = 280
_HANDOFFS_IN_BRIEF = 3
INBOX_START = (10, 0)  # the position before the highest priority, 9

NEXT = {
    "offered": "If it is offered to you, call accept_handoff. If you sent it, wait; get_context shows its state.",
    "accepted": "If you hold it: work, call renew_handoff before lease_expires_at, and finish with resolve_handoff "
    "action=complete, both with your token. Otherwise wait.",
    "blocked": "If you hold it: call renew_handoff with your token when you can continue, before lease_expires_at. "
    "Otherwise wait.",
}


async def brief_of(app: App, session_key: str, viewer: str | None, token_budget: int) -> tuple[Record, dict[str, Any]]:
    """Return the session and its brief from the same snapshot. Raises NotFound if `viewer` may not read the session."""
    async with snapshot(app.pool) as conn:
        session = await sessions.see(conn, session_key, viewer)
        key = cache.brief_key(dict(session), token_budget)
        composed = await app.cache.get(key)
        if composed is None:
            composed = await _compose(conn, session, token_budget)
            await app.cache.put(key, composed, cache.BRIEF_TTL_S)
    metrics.brief_returned(composed)
    return session, composed


async def summary_of(app: App, session_key: str, viewer: str | None) -> dict[str, Any]:
    """Return a summary of the session from one snapshot: participants, handoffs, counts, duration and key points.

    Raises NotFound if `viewer` may not read the session.
    """
    async with snapshot(app.pool) as conn:
        session = await sessions.see(conn, session_key, viewer)
        key = cache.summary_key(dict(session))
        summary = await app.cache.get(key)
        if summary is None:
            summary = await _summarise(conn, session)
            await app.cache.put(key, summary, cache.SUMMARY_TTL_S)
    return summary


async def _compose(conn: Connection, session: Record, token_budget: int) -> dict[str, Any]:
    chars = min(brief.TEXT_CHARS_MAX, token_budget * brief.BYTES_PER_TOKEN)
    return brief.compose(
        session_key=session["key"],
        as_of_sequence=session["last_sequence"],
        entries=[dict(row) for row in await entries.for_brief(conn, session["id"], brief.NEWEST, chars)],
        handoffs=[handoffs.view(row) for row in await handoffs.latest_of_session(conn, session["id"], _HANDOFFS_IN_BRIEF)],
        counts=await entries.counts(conn, session["id"]),
        superseded=await entries.superseded(conn, session["id"]),
        token_budget=token_budget,
    )


async def _summarise(conn: Connection, session: Record) -> dict[str, Any]:
    session_id: int = session["id"]
    points = await entries.for_brief(conn, session_id, {"decision": KEY_POINTS_MAX, "summary": 1}, EXCERPT_CHARS)
    messages = await entries.first_and_last_message(conn, session_id, EXCERPT_CHARS)
    counts = await entries.counts(conn, session_id)
    return {
        "session_key": session["key"],
        "status": session["status"],
        "started_by": session["created_by"],
        "owner": session["owner"],
        "handoffs": [
            {
                name: value
                for name, value in handoffs.view(row).items()
                if name in ("handoff_id", "state", "sender", "target_agent", "target_capability", "holder", "outcome")
            }
            for row in await handoffs.latest_of_session(conn, session_id, 20)
        ],
        "entries": sum(counts.values()),
        "by_type": counts,
        "participants": await entries.authors(conn, session_id),
        "content_bytes": session["content_bytes"],
        "minutes": round((session["last_activity_at"] - session["created_at"]).total_seconds() / 60, 1),
        "key_points": [
            {
                "sequence": row["sequence"],
                "kind": "question" if row["question"] else row["type"],
                "text": row["content"],
            }
            for row in points
        ],
        "first_message": _excerpt(messages[0]) if messages else None,
        "last_message": _excerpt(messages[-1]) if messages else None,
        "version": session["version"],
    }


def _excerpt(row: Record) -> dict[str, Any]:
    return {"sequence": row["sequence"], "author": row["author"], "text": row["content"], "at": row["created_at"]}


async def inbox_page(app: App, agent: str, after: tuple[Any, ...], limit: int) -> dict[str, Any]:
    """Return a page of the agent's open handoffs after a position, with the cursor of the next page if there is one."""
    async with connection(app.pool) as conn:
        rows = await handoffs.inbox(conn, agent, after=(after[0], after[1]), limit=limit + 1)
    page: dict[str, Any] = {"handoffs": [handoff_view(row) for row in rows[:limit]]}
    if len(rows) > limit:
        last = rows[limit - 1]
        page["next_cursor"] = to_cursor(last["priority"], last["id"])
    return page


def handoff_view(row: Record) -> dict[str, Any]:
    """Return a handoff in the form that callers receive, with what its holder or sender should do next."""
    view = handoffs.view(row)
    if row["state"] in NEXT:
        view["next"] = NEXT[row["state"]]
    return view
