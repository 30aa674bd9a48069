"""Views that tools and resources share: briefs and summaries, both cached, and inboxes."""

from typing import Any, Final

from asyncpg import Record

from handoff import brief, cache
from handoff.context import App
from handoff.encoding import to_cursor
from handoff.model import ENTRY_TYPES, HELD_STATES
from handoff.store import entries, handoffs, sessions
from handoff.store.connect import Connection, connection, snapshot
from handoff.telemetry import metrics

KEY_POINTS_MAX = 10
EXCERPT_CHARS = 280
_KEY_POINTS_BYTES = 16_000  # of each type and mark
_HANDOFFS_IN_BRIEF = 3
INBOX_START = (10, 0)  # the position before the highest priority, 9

# What a viewer should do next about an open handoff, by its state and what the viewer is to it.
NEXT: Final[dict[tuple[str, str], str]] = {
    ("offered", "target"): "It is offered to you: call accept_handoff to take it, or resolve_handoff action=reject with the "
    "reason as note.",
    (
        "offered",
        "sender",
    ): "Wait until it is accepted. To replace its instructions, call request_handoff with handoff_id; to "
    "withdraw it, call resolve_handoff action=cancel.",
    ("offered", "capable"): "If you have declared the capability {target_capability}, call accept_handoff to take it before "
    "another agent does.",
    ("offered", "other"): "Leave it to {target_agent}, to whom it is offered.",
    ("accepted", "holder"): "You hold it: work on it, call renew_handoff before lease_expires_at, and finish with "
    "resolve_handoff action=complete, both with this token.",
    ("accepted", "sender"): "Wait: {holder} is working on it. You can't cancel it now; to add a note for {holder}, call "
    "request_handoff with handoff_id.",
    ("accepted", "other"): "Leave it to {holder}, who is working on it.",
    (
        "blocked",
        "holder",
    ): "You hold it, and it is blocked: once you can continue, call renew_handoff with this token, before lease_expires_at.",
    (
        "blocked",
        "sender",
    ): "{holder} holds it and is blocked; reason says why. If you can remove the cause, do, and tell {holder} "
    "by request_handoff with handoff_id.",
    ("blocked", "other"): "Leave it to {holder}, who holds it and is blocked.",
}


async def brief_of(app: App, session_key: str, viewer: str | None, token_budget: int) -> tuple[Record, dict[str, Any]]:
    """Return the session and its brief from the same snapshot. Raises NotFound if `viewer` may not read the session."""
    session, composed = await _brief_of(app, session_key, viewer, token_budget)
    metrics.brief_returned(composed)
    return session, composed


async def preview_of(app: App, session_key: str, viewer: str) -> dict[str, Any]:
    """Return the size of the brief that a receiver gets by default, and what it leaves out."""
    _, composed = await _brief_of(app, session_key, viewer, brief.TOKENS_DEFAULT)
    return {"token_budget": brief.TOKENS_DEFAULT, "tokens": composed["tokens"], "omitted": composed["omitted"]}


async def _brief_of(app: App, session_key: str, viewer: str | None, token_budget: int) -> tuple[Record, dict[str, Any]]:
    async with snapshot(app.pool) as conn:
        session = await sessions.see(conn, session_key, viewer)
        key = cache.brief_key(dict(session), token_budget)
        composed = await app.cache.get(key)
        if composed is None:
            composed = await _compose(conn, session, token_budget)
            await app.cache.put(key, composed, cache.BRIEF_TTL_S)
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
    bytes_max = token_budget * brief.BYTES_PER_TOKEN
    wanted = min(brief.CANDIDATES_MAX, bytes_max // brief.PART_BYTES_MIN + 1)
    rows = await entries.for_brief(
        conn,
        session["id"],
        {**dict.fromkeys(ENTRY_TYPES, wanted), "file": brief.CANDIDATES_MAX},  # several entries on a file make one part
        wanted,
        chars=min(brief.TEXT_CHARS_MAX, bytes_max),
        chars_cut=min(brief.FIRST_CHARS_MAX, bytes_max),
        bytes_max=bytes_max,
    )
    return brief.compose(
        session_key=session["key"],
        as_of_sequence=session["last_sequence"],
        entries=[dict(row) for row in rows],
        handoffs=[handoffs.view(row) for row in await handoffs.latest_of_session(conn, session["id"], _HANDOFFS_IN_BRIEF)],
        counts=await entries.counts(conn, session),
        token_budget=token_budget,
    )


async def _summarise(conn: Connection, session: Record) -> dict[str, Any]:
    session_id: int = session["id"]
    points = await entries.for_brief(
        conn,
        session_id,
        {"decision": KEY_POINTS_MAX, "summary": 1},
        KEY_POINTS_MAX,
        chars=EXCERPT_CHARS,
        chars_cut=EXCERPT_CHARS,
        bytes_max=_KEY_POINTS_BYTES,
    )
    messages = await entries.first_and_last_message(conn, session_id, EXCERPT_CHARS)
    counts = await entries.counts(conn, session)
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
        "entries": sum(counts.all.values()),
        "by_type": counts.all,
        "participants": await entries.authors(conn, session_id),
        "content_bytes": session["content_bytes"],
        "minutes": round((session["last_activity_at"] - session["created_at"]).total_seconds() / 60, 1),
        "key_points": [
            {"sequence": row["sequence"], "kind": row["mark"] or row["type"], "text": row["content"]}
            for row in {row["sequence"]: row for row in points}.values()
        ],
        "first_message": _excerpt(messages[0]) if messages else None,
        "last_message": _excerpt(messages[-1]) if messages else None,
        "version": session["version"],
    }


def _excerpt(row: Record) -> dict[str, Any]:
    excerpt = {"sequence": row["sequence"], "author": row["author"], "text": row["content"], "at": row["created_at"]}
    return excerpt | {name: row[name] for name in ("superseded_by", "retracted") if row[name] is not None}


async def inbox_page(app: App, agent: str, after: tuple[Any, ...], limit: int) -> dict[str, Any]:
    """Return a page of the agent's open handoffs after a position, with the cursor of the next page if there is one."""
    async with connection(app.pool) as conn:
        rows = await handoffs.inbox(conn, agent, after=(after[0], after[1]), limit=limit + 1)
    page: dict[str, Any] = {"handoffs": [handoff_view(row, agent) for row in rows[:limit]]}
    if len(rows) > limit:
        last = rows[limit - 1]
        page["next_cursor"] = to_cursor(last["priority"], last["id"])
    return page


def handoff_view(row: Record, viewer: str | None) -> dict[str, Any]:
    """Return a handoff in the form that callers receive, with what `viewer` should do next while it is open."""
    view = handoffs.view(row)
    step = NEXT.get((row["state"], _role(row, viewer)))
    if step is not None:
        view["next"] = step.format_map(row)
    return view


def _role(row: Record, viewer: str | None) -> str:
    """Return what the viewer is to the handoff, of what counts in its state."""
    if row["state"] in HELD_STATES:
        roles = {row["sender"]: "sender", row["holder"]: "holder"}
    else:
        roles = {row["sender"]: "sender", row["target_agent"]: "target"}
    other = "capable" if row["state"] == "offered" and row["target_agent"] is None else "other"
    return roles.get(viewer, other) if viewer is not None else other
