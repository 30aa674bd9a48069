"""Handoffs: offered, held under a lease, and settled. Every change goes through `transition`, which applies TRANSITIONS."""

from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final

import structlog
from asyncpg import Record

from handoff.configuration import TRAIL_MAX
from handoff.encoding import to_json
from handoff.errors import Conflict
from handoff.model import EVENT_OF_ACTION, HELD_STATES, TRANSITIONS, HandoffAction, actions_from
from handoff.store import sessions
from handoff.store.connect import Connection, after_commit
from handoff.store.lease_clock import LEASE_TIME
from handoff.telemetry import calls, metrics, spans

log = structlog.get_logger(__name__)

COLUMNS = """h.id, h.session_id, h.request_type, h.sender, h.target_agent, h.target_capability, h.instructions, h.priority,
    h.deadline, h.state, h.holder, h.token, h.lease_expires_at, h.lapses, h.outcome, h.reason, h.as_of_sequence,
    h.context_digest, h.created_at, h.accepted_at, h.updated_at, h.traceparent,
    h.loop"""
# What a list shows of a handoff `h` can have changed only if this has; written_by is its xmin.
OUTLINE = "concat_ws(' ', h.id, h.written_by, h.updated_at) AS outline"

# `is_addressed`: to agent $2, by name or by a capability that it has declared; a sender cannot take its own offer to a
# capability. `sees_session`: $2 may read the session.
FIND = f"""
    SELECT {COLUMNS}, s.key AS session_key, s.owner AS session_owner, s.writers AS session_writers, now() AS now,
           coalesce(h.target_agent = $2
                    OR (h.sender <> $2
                        AND h.target_capability = ANY (SELECT unnest(capabilities) FROM agent WHERE name = $2)),
                    false) AS is_addressed,
           {sessions.SEES.format(session="s.id", viewer="$2")} AS sees_session, {LEASE_TIME} AS lease_time,
           s.expires_at <= now() OR s.status NOT IN ('active', 'dormant') AS session_is_over
      FROM handoff h JOIN session s ON s.id = h.session_id
     WHERE h.id = $1
"""
LOCK = f"{FIND} FOR NO KEY UPDATE OF h, s"

# A transition of a locked handoff, with all that belongs to it: the session's owner and writers, its event or events, a new
# participant, and the notification of those who wait. What an agent does ($13) lets the session live on, at least as long as
# the lease; what the service does is no activity. A reason is that of the present state, so only an amendment ($17) keeps
# it; its event has it for good. The session loses the writer $11 unless that agent may write because of another handoff: it
# holds one, or completed one as a collaboration.
CHANGE = f"""
    WITH h AS (
        UPDATE handoff
           SET state = $2, holder = $3, lapses = $6,
               lease_expires_at =
                   CASE WHEN $17::text IS NULL THEN now() + make_interval(secs => $5) ELSE lease_expires_at END,
               accepted_at = CASE WHEN $4 > token THEN now() ELSE accepted_at END, token = $4,
               outcome = coalesce($7, outcome), reason = CASE WHEN $17 IS NULL THEN $8 ELSE reason END, updated_at = now(),
               instructions = coalesce($17, instructions), as_of_sequence = coalesce($18, as_of_sequence),
               context_digest = coalesce($19, context_digest)
         WHERE id = $1
        RETURNING *
    ), s AS (
        UPDATE session s
           SET owner = $9, version = version + 1,
               last_activity_at = CASE WHEN $13::text IS NULL THEN last_activity_at ELSE now() END,
               expires_at = CASE WHEN $13 IS NULL THEN s.expires_at
                                 ELSE greatest(s.expires_at, h.lease_expires_at,
                                               now() + (SELECT p.active_for FROM retention_policy p
                                                         WHERE p.name = s.retention_policy)) END,
               writers = CASE WHEN EXISTS (SELECT FROM handoff o
                                            WHERE o.session_id = s.id AND o.id <> $1 AND o.holder = $11
                                              AND (o.state IN ('accepted', 'blocked')
                                                   OR (o.state = 'completed' AND o.request_type = 'collaboration')))
                              THEN $10::text[] ELSE array_remove($10::text[], $11::text) END
          FROM h
         WHERE s.id = h.session_id
        RETURNING s.id, s.key, s.owner, s.writers, s.created_at
    ), joined AS (
        INSERT INTO participant (agent, session_id, created_at)
        SELECT $12::text, s.id, s.created_at FROM s WHERE $12::text IS NOT NULL
        ON CONFLICT DO NOTHING
    ), recorded AS (
        INSERT INTO event (session_id, handoff_id, kind, agent, at, data)
        SELECT s.id, CASE WHEN e.kind LIKE 'handoff.%' THEN $1 END, e.kind, $13, now(), e.data::jsonb
          FROM s, unnest($14::text[], $15::text[]) WITH ORDINALITY AS e (kind, data, place)
         ORDER BY e.place
    )
    SELECT {COLUMNS}, s.key AS session_key, s.owner AS session_owner, s.writers AS session_writers, now() AS now,
           pg_notify('handoff', $16)
      FROM h, s
"""

OPEN_OF_SESSION = """
    SELECT id FROM handoff
     WHERE session_id = $1 AND state IN ('offered', 'accepted', 'blocked')
     ORDER BY id DESC
     LIMIT 20
"""
LATEST_OF_SESSION = f"""
    SELECT {COLUMNS}, s.key AS session_key
      FROM handoff h JOIN session s ON s.id = h.session_id
     WHERE h.session_id = $1
     ORDER BY h.id DESC
     LIMIT $2
"""
# What loops are found by; a sender's own offers that were never accepted are no part of one.
TRAIL = """
    SELECT sender, holder, target_capability, state, accepted_at, accepted_at > now() - interval '24 hours' AS is_recent
      FROM handoff
     WHERE session_id = $1
     ORDER BY id DESC
     LIMIT $2
"""

OVERDUE = f"""
    (SELECT id FROM handoff WHERE state IN ('accepted', 'blocked') AND lease_expires_at <= {LEASE_TIME}
      ORDER BY lease_expires_at LIMIT $1)
    UNION ALL
    (SELECT id FROM handoff WHERE state = 'offered' AND deadline IS NOT NULL AND deadline <= now()
      ORDER BY deadline LIMIT $1)
"""

_REASON_CHARS_MAX: Final = 1_000  # in an event, of which a page has a hundred; the handoff has all of it while it stands
WRITERS_MAX: Final = 64  # as a constraint of the table says too


@dataclass(frozen=True, slots=True)
class Amendment:
    """What a handoff says after its sender amended it; the fields are those of an offer."""

    instructions: str
    as_of_sequence: int
    context_digest: bytes


async def find(conn: Connection, handoff_id: int, viewer: str | None = None) -> Record | None:
    """Return the handoff with this id, and what `viewer` is to it; see `may_see`."""
    return await conn.fetchrow(FIND, handoff_id, viewer)


async def lock(conn: Connection, handoff_id: int, viewer: str | None = None) -> Record | None:
    """Return the same as `find`, with the handoff and its session locked until the transaction ends."""
    return await conn.fetchrow(LOCK, handoff_id, viewer)


def may_see(row: Record, viewer: str | None) -> bool:
    """Return whether `viewer` may read the handoff: it is a party to it, is addressed by it, or may read its session.

    A handoff that is not on offer no longer addresses those who did not take it; the agent that rejected it remains a party.
    The row must be one that `find` or `lock` returned for this viewer.
    """
    if viewer in (None, row["sender"], row["holder"]) or row["sees_session"]:
        return True
    if row["state"] == "rejected":
        return viewer == row["target_agent"]
    is_lapsed = row["state"] in HELD_STATES and row["lease_expires_at"] <= row["now"]
    return row["is_addressed"] and (row["state"] == "offered" or is_lapsed)


def may_act(row: Record, viewer: str | None) -> bool:
    """Return whether `viewer` may know that the handoff exists, and in which state it is: it may read it, or might once.

    Whoever came too late for an offer learns that, but not what the offer says.
    """
    return may_see(row, viewer) or row["is_addressed"]


async def open_of_session(conn: Connection, session_id: int) -> list[int]:
    """Return the ids of the session's open handoffs, newest first, at most 20."""
    return [row["id"] for row in await conn.fetch(OPEN_OF_SESSION, session_id)]


async def latest_of_session(conn: Connection, session_id: int, limit: int) -> list[Record]:
    """Return the session's handoffs, open or settled, newest first."""
    return await conn.fetch(LATEST_OF_SESSION, session_id, limit)


async def trail(conn: Connection, session_id: int) -> list[dict[str, Any]]:
    """Return what loops are found by: the session's newest handoffs, at most TRAIL_MAX, newest first."""
    return [dict(row) for row in await conn.fetch(TRAIL, session_id, TRAIL_MAX)]


async def transition(
    conn: Connection,
    row: Record,
    action: HandoffAction,
    *,
    agent: str | None,
    lease_s: float | None = None,
    outcome: str | None = None,
    reason: str | None = None,
    amendment: Amendment | None = None,
) -> Record:
    """Apply `action` to a handoff that the caller has locked, and return the changed row.

    Updates the handoff and the session's writers, records the event and notifies waiting agents. `row` comes from `lock` or
    from an earlier transition. `agent` is the agent that acts, or None if the service acts because a time has passed. An
    `amendment` belongs to the action amend, which keeps the lease. Raises Conflict if TRANSITIONS does not allow the action.
    """
    state = TRANSITIONS.get((row["state"], action))
    if state is None:
        raise wrong_state(row, action)
    holder, token = row["holder"], row["token"]
    if action == "accept":
        holder, token = agent, token + 1
    elif action == "lapse":
        holder = None
    owner, writers, leaving = _writers(row, action, agent)
    recorded = [(EVENT_OF_ACTION[action], {"holder": row["holder"]} if action == "lapse" else {})]
    if token:
        recorded[0][1]["token"] = token
    if reason is not None:
        recorded[0][1]["reason"] = reason[:_REASON_CHARS_MAX]
    if owner != row["session_owner"]:
        recorded.append(("session.owner_changed", {"from": row["session_owner"], "to": owner}))
    changed = await conn.fetchrow(
        CHANGE,
        row["id"],
        state,
        holder,
        token,
        lease_s if state in HELD_STATES else None,
        row["lapses"] + (action == "lapse"),
        outcome,
        reason,
        owner,
        writers,
        leaving,
        agent if action == "accept" else None,
        agent,
        [kind for kind, _ in recorded],
        [to_json(data).decode() if data else None for _, data in recorded],
        _topics(row, holder or row["holder"]),
        amendment and amendment.instructions,
        amendment and amendment.as_of_sequence,
        amendment and amendment.context_digest,
    )
    if changed is None:
        raise LookupError(f"handoff {row['id']} no longer exists")
    after_commit(partial(observe, action, row, changed))
    return changed


async def overdue(conn: Connection, limit: int) -> list[int]:
    """Return the ids of handoffs whose lease or deadline has passed, at most `limit` of each."""
    return [row["id"] for row in await conn.fetch(OVERDUE, limit)]


async def settle(conn: Connection, row: Record, lapses_max: int) -> Record:
    """Apply every transition that is due by now to a handoff that `lock` returned, and return the resulting row.

    A handoff whose lease has lapsed is offered again; it expires once more than `lapses_max` leases have lapsed. An offer
    past its deadline expires. Once the session is over, a lease lapses and the handoff expires.
    """
    now: datetime = row["now"]
    if row["session_is_over"]:
        return await end(conn, row, "its session is over")
    if row["state"] in HELD_STATES and row["lease_expires_at"] <= row["lease_time"]:
        row = await _lapse(conn, row)
        if row["lapses"] > lapses_max:
            return await transition(conn, row, "expire", agent=None, reason="its lease lapsed too often")
    if row["state"] == "offered" and row["deadline"] is not None and row["deadline"] <= now:
        return await transition(conn, row, "expire", agent=None, reason="its deadline passed")
    return row


async def end(conn: Connection, row: Record, reason: str) -> Record:
    """End a handoff that `lock` returned, because its session ends: if it is held, its lease lapses, and then it expires."""
    if row["state"] in HELD_STATES:
        row = await _lapse(conn, row)
    if row["state"] == "offered":
        row = await transition(conn, row, "expire", agent=None, reason=reason)
    return row


async def _lapse(conn: Connection, row: Record) -> Record:
    """Let a held handoff lapse. It is renewed before if it is blocked, because TRANSITIONS has no lapse from blocked."""
    if row["state"] == "blocked":
        row = await transition(conn, row, "renew", agent=None, lease_s=0)
    return await transition(conn, row, "lapse", agent=None)


def wrong_state(row: Record, action: HandoffAction) -> Conflict:
    """Return the error for an action that the handoff's state does not allow."""
    allowed = [name for name in actions_from(row["state"]) if name not in ("amend", "lapse", "expire")]
    participle = EVENT_OF_ACTION[action].removeprefix("handoff.")
    is_held = row["state"] in HELD_STATES
    held_by = f" It is held by {row['holder']!r}." if is_held else ""
    because = f" because {row['reason']}" if row["state"] == "expired" and row["reason"] else ""
    return Conflict(
        "wrong_state",
        f"Handoff {row['id']} is {row['state']}{because}, so it cannot be {participle}.{held_by}",
        f"Allowed now{', to its holder' if is_held else ''}: {', '.join(allowed)}."
        if allowed
        else "This handoff is settled: do not act on it again.",
        state=row["state"],
        holder=row["holder"],
    )


def _writers(row: Record, action: HandoffAction, agent: str | None) -> tuple[str, list[str], str | None]:
    """Return the session's owner and writers after a transition, and the writer that leaves unless another handoff keeps it.

    The holder of a handoff may write while it holds it. Accepting a full handoff makes the receiver the owner, unless its
    lease lapses, which returns the session to the sender. After completing a collaboration or a full handoff, the receiver
    keeps write access. Raises Conflict if the sender is no longer the owner or the session has 64 writers.
    """
    owner: str = row["session_owner"]
    writers: list[str] = list(row["session_writers"])
    full = row["request_type"] == "full_handoff"
    leaving: str | None = None
    if action == "accept" and agent is not None:
        if full and owner != row["sender"]:
            raise Conflict(
                "ownership_moved",
                f"The sender {row['sender']!r} no longer owns this session. Its owner is now {owner!r}.",
                f"Do not accept this offer. Ask {owner!r} for a full_handoff of the session.",
                owner=owner,
            )
        if full:
            owner, writers = agent, [name for name in writers if name != owner]
        writers.append(agent)
    elif action in ("complete", "lapse"):
        holder: str = row["holder"]
        if action == "lapse" and full and owner == holder:
            owner = row["sender"]
            writers.append(owner)
        keeps = action == "complete" and row["request_type"] != "context_transfer"
        if holder != owner and not keeps:
            leaving = holder
    writers = list(dict.fromkeys(writers))
    if len(writers) > WRITERS_MAX:
        raise Conflict(
            "limit_reached",
            f"This session already has {WRITERS_MAX} writers, the maximum.",
            "Accept again after another agent has completed its handoff of this session, or use a new session.",
        )
    return owner, writers, leaving


def observe(action: str, before: Record, after: Record) -> None:
    """Update metrics for a committed change, log it, and continue the handoff's trace, which begins with its offer."""
    metrics.handoff_changed(action, before, after)
    log.info(
        "handoff.changed",
        handoff=after["id"],
        action=action,
        state=after["state"],
        type=after["request_type"],
        sender=after["sender"],
        target_agent=after["target_agent"],
        target_capability=after["target_capability"],
        holder=after["holder"],
        session=before["session_key"],
        by="call" if calls.current() is not None else "clock",
    )
    if action != "offer":
        spans.continue_story(action, before, after)


def _topics(row: Record, holder: str | None) -> str:
    """Return what a change of the handoff is announced as to every process, one topic per line (see wakeups.py)."""
    topics = [f"handoff:{row['id']}"]
    if row["target_agent"] is not None:
        topics.append(f"agent:{row['target_agent']}")
    if row["target_capability"] is not None:
        topics.append(f"capability:{row['target_capability']}")
    if holder is not None and holder != row["target_agent"]:
        topics.append(f"agent:{holder}")
    return "\n".join(topics)


def view(row: Record) -> dict[str, Any]:
    """Return a handoff in the form that callers receive. Fields that are not set are left out."""
    seen = {
        "handoff_id": row["id"],
        "session_key": row["session_key"],
        "state": row["state"],
        "sender": row["sender"],
        "target_agent": row["target_agent"],
        "target_capability": row["target_capability"],
        "holder": row["holder"],
        "token": row["token"],
        "request_type": row["request_type"],
        "instructions": row["instructions"],
        "priority": row["priority"],
        "deadline": row["deadline"],
        "lease_expires_at": row["lease_expires_at"],
        "lapses": row["lapses"],
        "outcome": row["outcome"],
        "reason": row["reason"],
        "as_of_sequence": row["as_of_sequence"],
        "context_digest": row["context_digest"].hex(),
        "loop": row["loop"],
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
    }
    return {name: value for name, value in seen.items() if value is not None}
