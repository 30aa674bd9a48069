"""Offers: the beginning of a handoff, with a bound on how many one sender may have open to one target."""

from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from asyncpg import Record

from handoff.encoding import counted
from handoff.errors import Busy
from handoff.model import Loop, RequestType
from handoff.store.connect import Connection, after_commit
from handoff.store.handoffs import COLUMNS, observe
from handoff.telemetry import calls, metrics

# An offer with its event and its notification, unless the sender has $12 offers to this target open already: then no row.
# `is_known` says whether an agent that could accept it has been seen.
OFFER = f"""
    WITH h AS (
        INSERT INTO handoff (session_id, request_type, sender, target_agent, target_capability, instructions, priority,
                             deadline, state, token, lapses, as_of_sequence, context_digest, created_at, updated_at,
                             traceparent, loop)
        SELECT $1, $2, $3, $4, $5, $6, $7, now() + make_interval(mins => $8), 'offered', 0, 0, $9, $10, now(), now(), $11,
               $13
         WHERE (SELECT count(*)
                  FROM (SELECT FROM handoff
                         WHERE state = 'offered' AND sender = $3 AND (target_agent = $4 OR target_capability = $5)
                         LIMIT $12) open) < $12
        RETURNING *
    ), touched AS (
        UPDATE session s
           SET last_activity_at = now(), version = s.version + 1, status = 'active',
               expires_at = greatest(s.expires_at, now() + p.active_for),
               status_since = CASE WHEN s.status = 'dormant' THEN now() ELSE s.status_since END,
               idle_check_at = CASE WHEN s.status = 'dormant' THEN now() ELSE s.idle_check_at END
          FROM h, session before JOIN retention_policy p ON p.name = before.retention_policy
         WHERE s.id = h.session_id AND before.id = s.id
        RETURNING s.key, before.status = 'dormant' AS is_woken
    ), recorded AS (
        INSERT INTO event (session_id, handoff_id, kind, agent, at, data)
        SELECT h.session_id, e.handoff_id, e.kind, h.sender, now(), e.data
          FROM h, touched, LATERAL (
            VALUES (1, NULL, 'session.reactivated', NULL),
                   (2, h.id, 'handoff.offered', jsonb_strip_nulls(jsonb_build_object(
                       'to', coalesce(h.target_agent, h.target_capability), 'request_type', h.request_type,
                       'loop', h.loop)))
          ) AS e (place, handoff_id, kind, data)
         WHERE e.place = 2 OR touched.is_woken
         ORDER BY e.place
    )
    SELECT {COLUMNS}, touched.key AS session_key,
           CASE WHEN h.target_agent IS NULL
                THEN EXISTS (SELECT FROM agent WHERE capabilities @> ARRAY[h.target_capability] AND name <> h.sender)
                ELSE EXISTS (SELECT FROM agent WHERE name = h.target_agent)
                     OR EXISTS (SELECT FROM participant WHERE agent = h.target_agent) END AS is_known,
           pg_notify('handoff', concat_ws(E'\\n', 'handoff:' || h.id, 'agent:' || h.target_agent,
                                                'capability:' || h.target_capability))
      FROM h, touched
"""

# Of the newest offers, the sessions that changed after they were offered, and no longer ago than $1: the last changed first.
CHANGED_SINCE = """
    SELECT DISTINCT ON (s.last_activity_at, s.id) s.id, s.key, s.version, s.created_at, s.last_activity_at
      FROM (SELECT session_id, updated_at FROM handoff WHERE state = 'offered' ORDER BY updated_at DESC LIMIT 1000) h
      JOIN session s ON s.id = h.session_id
     WHERE s.last_activity_at > h.updated_at AND s.last_activity_at > now() - $1::interval
     ORDER BY s.last_activity_at DESC, s.id
     LIMIT $2
"""


@dataclass(frozen=True, slots=True)
class Offer:
    """A validated offer. Exactly one of the two targets is set. `deadline_minutes` is None if there is no deadline.

    `context_digest` is the SHA-256 over the hashes of the entries up to `as_of_sequence`, in order. The sender may have
    `offers_max` offers to one target open at a time. `loop` is the kind and the number of the loop that the offer continues.
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
    offers_max: int
    loop: tuple[Loop, int] | None = None


async def offer(conn: Connection, new: Offer) -> Record:
    """Insert an offer, record its event and notify waiting agents. The caller must have locked the session.

    Raises Busy if the sender has `offers_max` offers to this target open already.
    """
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
        new.offers_max,
        new.loop and {"kind": new.loop[0], "count": new.loop[1]},
    )
    if row is None:
        raise _too_many_offers(new)
    after_commit(partial(observe, "offer", row, row))
    if new.loop:
        after_commit(partial(metrics.LOOP_WARNINGS.add, 1, new.loop[0]))
    return row


def _too_many_offers(new: Offer) -> Busy:
    """Return the error for a sender that uses its whole share of a target's inbox."""
    target = repr(new.target_agent) if new.target_agent else f"the capability {new.target_capability!r}"
    offers = counted(new.offers_max, "offer")
    return Busy(
        "share_used_up",
        f"You have {offers} to {target} that nobody has accepted yet, which is your share of that inbox.",
        "Call again after one of them is accepted, or withdraw one with resolve_handoff action=cancel. Nothing was offered.",
        share="offers",
    )


async def changed_since(conn: Connection, within: timedelta, limit: int) -> list[Record]:
    """Return sessions that are on offer and went on changing afterwards, lately: at most `limit`, the last changed first."""
    return await conn.fetch(CHANGED_SINCE, within, limit)
