"""Handoffs: offered, held under a lease, and settled. Every change goes through `transition`, which applies TRANSITIONS."""

from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from asyncpg import Record

from handoff.errors import Conflict
from handoff.model import EVENT_OF_ACTION, HELD_STATES, TRANSITIONS, HandoffAction, RequestType, actions_from
from handoff.store import events, sessions
from handoff.store.connect import Connection, after_commit
from handoff.telemetry import calls, metrics, spans

_COLUMNS = """h.id, h.session_id, h.request_type, h.sender, h.target_agent, h.target_capability, h.instructions, h.priority,
    h.deadline, h.state, h.holder, h.token, h.lease_expires_at, h.lapses, h.outcome, h.reason, h.as_of_sequence,
    h.context_digest, h.created_at, h.accepted_at, h.updated_at, h.traceparent"""

OFFER = f"""
    INSERT INTO handoff AS h (session_id, request_type, sender, target_agent, target_capability, instructions, priority,
                              deadline, state, token, lapses, as_of_sequence, context_digest, created_at, updated_at,
                              traceparent)
    VALUES ($1, $2, $3, $4, $5, $6, $7, now() + make_interval(mins => $8), 'offered', 0, 0, $9, $10, now(), now(), $11)
 RETURNING {_COLUMNS}, (SELECT key FROM session WHERE id = $1) AS session_key
"""

FIND = f"""
    SELECT {_COLUMNS}, s.key AS session_key
      FROM handoff h JOIN session s ON s.id = h.session_id
     WHERE h.id = $1
"""
LOCK = f"{FIND} FOR NO KEY UPDATE OF h"

# Whether a handoff is addressed to agent $2, by name or by a capability the agent has declared. A sender cannot take its own
# offer to a capability.
ADDRESSED = """
    SELECT h.target_agent = $2
        OR (h.sender <> $2 AND h.target_capability = ANY (SELECT unnest(capabilities) FROM agent WHERE name = $2))
      FROM handoff h
     WHERE h.id = $1
"""

CHANGE = f"""
    UPDATE handoff AS h
       SET state = $2, holder = $3, lease_expires_at = now() + make_interval(secs => $5), lapses = $6,
           accepted_at = CASE WHEN $4 > token THEN now() ELSE accepted_at END, token = $4,
           outcome = coalesce($7, outcome), reason = coalesce($8, reason), updated_at = now()
     WHERE h.id = $1
 RETURNING {_COLUMNS}, (SELECT key FROM session WHERE id = h.session_id) AS session_key
"""

AMEND = f"""
    UPDATE handoff AS h SET instructions = $2, as_of_sequence = $3, context_digest = $4, updated_at = now()
     WHERE h.id = $1
 RETURNING {_COLUMNS}, (SELECT key FROM session WHERE id = h.session_id) AS session_key
"""

OPEN_OF_SESSION = """
    SELECT id FROM handoff
     WHERE session_id = $1 AND state IN ('offered', 'accepted', 'blocked')
     ORDER BY id DESC
     LIMIT 20
"""
# The agents that may write to a session because of another handoff: they hold it, or completed it as a collaboration.
WRITING_BY_OTHERS = """
    SELECT DISTINCT holder FROM handoff
     WHERE session_id = $1 AND id <> $2
       AND (state IN ('accepted', 'blocked') OR (state = 'completed' AND request_type = 'collaboration'))
     LIMIT 64
"""
LATEST_OF_SESSION = f"""
    SELECT {_COLUMNS}, s.key AS session_key
      FROM handoff h JOIN session s ON s.id = h.session_id
     WHERE h.session_id = $1
     ORDER BY h.id DESC
     LIMIT $2
"""

# One list after a position (priority, id): the rest of that priority, then the lower priorities. Comparing the pair would
# read every row before the position, because the index descends in priority and ascends in id.
_AFTER = """
        (SELECT * FROM handoff WHERE {list} AND priority = $2 AND id > $3 ORDER BY id LIMIT $4)
        UNION ALL
        (SELECT * FROM handoff WHERE {list} AND priority < $2 ORDER BY priority DESC, id LIMIT $4)
"""
# The open handoffs of an agent, most urgent first: three lists, each read by its index and no further than two pages.
INBOX = f"""
    SELECT {_COLUMNS}, s.key AS session_key
      FROM (
        {_AFTER.format(list="target_agent = $1 AND state = 'offered'")}
        UNION ALL
        (SELECT c.* FROM (SELECT DISTINCT unnest(capabilities) AS capability FROM agent WHERE name = $1) a, LATERAL (
        {_AFTER.format(list="target_capability = a.capability AND state = 'offered' AND sender <> $1")}) c)
        UNION ALL
        {_AFTER.format(list="holder = $1 AND state IN ('accepted', 'blocked')")}
      ) h JOIN session s ON s.id = h.session_id
     ORDER BY h.priority DESC, h.id
     LIMIT $4
"""

OVERDUE = """
    (SELECT id FROM handoff WHERE state IN ('accepted', 'blocked') AND lease_expires_at <= now()
      ORDER BY lease_expires_at LIMIT $1)
    UNION ALL
    (SELECT id FROM handoff WHERE state = 'offered' AND deadline IS NOT NULL AND deadline <= now()
      ORDER BY deadline LIMIT $1)
"""
NOW = "SELECT now()"

NOTIFY = "SELECT pg_notify('handoff', $1)"


@dataclass(frozen=True, slots=True)
class Offer:
    """A validated offer. Exactly one of the two targets is set. `deadline_minutes` is None if there is no deadline.

    `context_digest` is the SHA-256 over the hashes of the entries up to `as_of_sequence`, in order.
    """

    session_id: int
    request_type: RequestType
    sender: str
    target_agent: str | None
    target_capability: str | None
    instructions: str
    priority: int
    deadline_minutes: int | None
    as_of_sequence: int
    context_digest: bytes


@dataclass(frozen=True, slots=True)
class Amendment:
    """What a handoff says after its sender amended it; the fields are those of an offer."""

    instructions: str
    as_of_sequence: int
    context_digest: bytes


async def offer(conn: Connection, new: Offer) -> Record:
    """Insert an offer, record its event and notify waiting agents. The caller must have locked the session."""
    record = calls.current()
    row = await conn.fetchrow(
        OFFER,
        new.session_id,
        new.request_type,
        new.sender,
        new.target_agent,
        new.target_capability,
        new.instructions,
        new.priority,
        new.deadline_minutes,
        new.as_of_sequence,
        new.context_digest,
        record.traceparent if record is not None else None,
    )
    if row is None:
        raise LookupError(f"session {new.session_id} does not exist")
    await sessions.touch(conn, new.session_id)
    await events.record(
        conn,
        "handoff.offered",
        session_id=new.session_id,
        handoff_id=row["id"],
        agent=new.sender,
        data={"to": new.target_agent or new.target_capability, "request_type": new.request_type},
    )
    await _notify(conn, row)
    after_commit(partial(_observe, "offer", row, row))
    return row


async def find(conn: Connection, handoff_id: int) -> Record | None:
    """Return the handoff with this id, without checking who may see it."""
    return await conn.fetchrow(FIND, handoff_id)


async def lock(conn: Connection, handoff_id: int) -> Record | None:
    """Return the handoff with this id, locked until the transaction ends."""
    return await conn.fetchrow(LOCK, handoff_id)


async def is_addressed(conn: Connection, handoff_id: int, agent: str) -> bool:
    """Return whether the handoff is addressed to the agent, by name or by a capability the agent has declared."""
    return bool(await conn.fetchval(ADDRESSED, handoff_id, agent))


async def may_see(conn: Connection, row: Record, viewer: str | None) -> bool:
    """Return whether `viewer` may read the handoff: it is a party to it, is addressed by it, or may read its session."""
    return (
        viewer in (None, row["sender"], row["target_agent"], row["holder"])
        or await is_addressed(conn, row["id"], viewer or "")
        or await sessions.may_see(conn, row["session_id"], viewer)
    )


async def open_of_session(conn: Connection, session_id: int) -> list[int]:
    """Return the ids of the session's open handoffs, newest first, at most 20."""
    return [row["id"] for row in await conn.fetch(OPEN_OF_SESSION, session_id)]


async def latest_of_session(conn: Connection, session_id: int, limit: int) -> list[Record]:
    """Return the session's handoffs, open or settled, newest first."""
    return await conn.fetch(LATEST_OF_SESSION, session_id, limit)


async def inbox(conn: Connection, agent: str, *, after: tuple[int, int], limit: int) -> list[Record]:
    """Return the offers the agent can accept and the handoffs it holds, after the position (priority, id)."""
    return await conn.fetch(INBOX, agent, *after, limit)


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

    Updates the handoff and the session's writers, records the event and notifies waiting agents. `agent` is the agent that
    acts, or None if the service acts because a time has passed. An `amendment` belongs to the action amend, which keeps the
    lease. Raises Conflict if TRANSITIONS does not allow the action.
    """
    state = TRANSITIONS.get((row["state"], action))
    if state is None:
        raise wrong_state(row, action)
    holder, token = row["holder"], row["token"]
    if action == "accept":
        holder, token = agent, token + 1
    elif action == "lapse":
        holder = None
    if amendment is not None:
        said = (amendment.instructions, amendment.as_of_sequence, amendment.context_digest)
        changed = await conn.fetchrow(AMEND, row["id"], *said)
    else:
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
        )
    if changed is None:
        raise LookupError(f"handoff {row['id']} no longer exists")
    await _set_writers(conn, row, action, agent)
    data = {"holder": row["holder"], "token": token} if action == "lapse" else {"token": token} if token else None
    await events.record(
        conn,
        EVENT_OF_ACTION[action],
        session_id=row["session_id"],
        handoff_id=row["id"],
        agent=agent,
        data=data,
    )
    await _notify(conn, changed)
    after_commit(partial(_observe, action, row, changed))
    return changed


async def overdue(conn: Connection, limit: int) -> list[int]:
    """Return the ids of handoffs whose lease or deadline has passed, at most `limit` of each."""
    return [row["id"] for row in await conn.fetch(OVERDUE, limit)]


async def settle(conn: Connection, row: Record, lapses_max: int) -> Record:
    """Apply every transition that is due by now to a locked handoff, and return the resulting row.

    A handoff whose lease has lapsed is offered again; it expires once more than `lapses_max` leases have lapsed. An offer
    past its deadline expires. A blocked handoff is renewed before it lapses, because TRANSITIONS has no lapse from blocked.
    """
    now: datetime = await conn.fetchval(NOW)
    if row["state"] in HELD_STATES and row["lease_expires_at"] <= now:
        if row["state"] == "blocked":
            row = await transition(conn, row, "renew", agent=None, lease_s=0)
        row = await transition(conn, row, "lapse", agent=None)
        if row["lapses"] > lapses_max:
            return await transition(conn, row, "expire", agent=None, reason="its lease lapsed too often")
    if row["state"] == "offered" and row["deadline"] is not None and row["deadline"] <= now:
        return await transition(conn, row, "expire", agent=None, reason="its deadline passed")
    return row


def wrong_state(row: Record, action: HandoffAction) -> Conflict:
    """Return the error for an action that the handoff's state does not allow."""
    allowed = [name for name in actions_from(row["state"]) if name not in ("amend", "lapse", "expire")]
    participle = EVENT_OF_ACTION[action].removeprefix("handoff.")
    held_by = f" It is held by {row['holder']!r}." if row["state"] in HELD_STATES else ""
    return Conflict(
        "wrong_state",
        f"Handoff {row['id']} is {row['state']}, so it cannot be {participle}.{held_by}",
        f"Allowed now: {', '.join(allowed)}." if allowed else "This handoff is settled: do not act on it again.",
        state=row["state"],
        holder=row["holder"],
    )


async def _set_writers(conn: Connection, row: Record, action: HandoffAction, agent: str | None) -> None:
    """Update the session's owner and writers after a transition of one of its handoffs.

    The holder of a handoff may write while it holds it. Accepting a full handoff makes the receiver the owner, unless its
    lease lapses, which returns the session to the sender. After completing a collaboration or a full handoff, the receiver
    keeps write access. Raises Conflict if the sender is no longer the owner or the session has 64 writers.
    """
    if action not in ("accept", "complete", "lapse"):
        await sessions.touch(conn, row["session_id"])
        return
    session = await sessions.lock(conn, row["session_id"])
    owner: str = session["owner"]
    writers: list[str] = list(session["writers"])
    full = row["request_type"] == "full_handoff"
    if action == "accept" and agent is not None:
        await sessions.join(conn, row["session_id"], agent)
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
    else:
        holder: str = row["holder"]
        if action == "lapse" and full and owner == holder:
            owner = row["sender"]
            writers.append(owner)
        keeps = action == "complete" and row["request_type"] != "context_transfer"
        others = [other["holder"] for other in await conn.fetch(WRITING_BY_OTHERS, row["session_id"], row["id"])]
        if holder != owner and not keeps and holder not in others:
            writers = [name for name in writers if name != holder]
    writers = list(dict.fromkeys(writers))
    if action == "accept" and len(writers) > 64:
        raise Conflict(
            "limit_reached",
            "This session already has 64 writers, the maximum.",
            "Accept again after another agent has completed its handoff of this session, or use a new session.",
        )
    await sessions.set_writers(conn, row["session_id"], owner, writers)
    if owner != session["owner"]:
        moved = {"from": session["owner"], "to": owner}
        await events.record(conn, "session.owner_changed", session_id=row["session_id"], agent=agent, data=moved)


def _observe(action: str, before: Record, after: Record) -> None:
    """Update metrics for a committed change, and continue the handoff's trace, which begins with its offer."""
    metrics.handoff_changed(action, before, after)
    if action != "offer":
        spans.continue_story(action, before, after)


async def _notify(conn: Connection, row: Record) -> None:
    """Notify every process, at commit, of the topics that changed: one topic per line (see wakeups.py)."""
    topics = [f"handoff:{row['id']}"]
    if row["target_agent"] is not None:
        topics.append(f"agent:{row['target_agent']}")
    if row["target_capability"] is not None:
        topics.append(f"capability:{row['target_capability']}")
    if row["holder"] is not None and row["holder"] != row["target_agent"]:
        topics.append(f"agent:{row['holder']}")
    await conn.execute(NOTIFY, "\n".join(topics))


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
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
    }
    return {name: value for name, value in seen.items() if value is not None}
