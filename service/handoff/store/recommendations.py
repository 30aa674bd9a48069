"""Recommendations: opened, kept and closed by what was measured, and kept for a while with what was measured after."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from asyncpg import Record

from handoff.recommendations import KINDS, Measured
from handoff.store.connect import Connection

OPEN_MAX: Final = 200  # at a time; more would be read by nobody
KEPT: Final = timedelta(days=90)  # after they were closed
_FORGOTTEN_MAX: Final = 1_000  # per run

LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('handoff.recommendation', 0))"
OPEN = """
    SELECT id, kind, subject, evidence_now FROM recommendation WHERE closed_at IS NULL ORDER BY id LIMIT $1
"""
OPEN_NEW = """
    INSERT INTO recommendation (kind, subject, agents, opened_at, measured_at, figure, figure_now, evidence, evidence_now)
    VALUES ($1, $2, $3, now(), now(), $4, $4, $5, $5)
        ON CONFLICT (kind, subject) WHERE closed_at IS NULL DO NOTHING
"""
KEEP = "UPDATE recommendation SET measured_at = now(), figure_now = $2, evidence_now = $3 WHERE id = $1"
CLOSE = """
    UPDATE recommendation SET closed_at = now(), measured_at = now(), figure_now = $2, evidence_now = $3 WHERE id = $1
"""
# The last evidence about each statement that was ever slow: its counters say from where to count on.
KNOWN = """
    SELECT DISTINCT ON (subject) subject, evidence_now
      FROM recommendation
     WHERE kind = 'slow_query' AND evidence_now ? 'calls'
     ORDER BY subject, id DESC
     LIMIT 1000
"""
FORGET = """
    DELETE FROM recommendation
     WHERE id = ANY (ARRAY(SELECT id FROM recommendation WHERE closed_at < now() - $1::interval ORDER BY closed_at LIMIT $2))
"""
# Open ones first, each the newest first; $1 and $2 are the last of the page before, $3 is whose they are.
PAGE = """
    SELECT id, kind, subject, opened_at, closed_at, measured_at, figure, figure_now, evidence, evidence_now
      FROM recommendation
     WHERE (closed_at IS NULL, id) < ($1::boolean, $2::bigint) AND ($3::text IS NULL OR agents @> ARRAY[$3::text])
     ORDER BY closed_at IS NULL DESC, id DESC
     LIMIT $4
"""


async def known_statements(conn: Connection) -> dict[str, Any]:
    """Return the last evidence about each statement that was ever slow, by its id."""
    return {row["subject"]: row["evidence_now"] for row in await conn.fetch(KNOWN)}


async def settle(conn: Connection, measured: Sequence[Measured]) -> dict[str, int]:
    """Open, keep and close recommendations by what was measured; return how many are open now, by kind.

    One that is open and of which nothing is measured any more is closed, except a slow statement: it may only be idle.
    """
    await conn.execute(LOCK)  # one process at a time, if a leader was replaced while it ran
    open_now = {(row["kind"], row["subject"]): row["id"] for row in await conn.fetch(OPEN, OPEN_MAX)}
    left = dict(open_now)
    for it in measured:
        kind, known = KINDS[it.kind], left.pop((it.kind, it.subject), None)
        if known is not None and it.figure < kind.closes_at:
            await conn.execute(CLOSE, known, it.figure, dict(it.evidence))
            del open_now[it.kind, it.subject]
        elif known is not None:
            await conn.execute(KEEP, known, it.figure, dict(it.evidence))
        elif it.figure >= kind.opens_at and it.is_enough and len(open_now) < OPEN_MAX:
            await conn.execute(OPEN_NEW, it.kind, it.subject, list(it.agents), it.figure, dict(it.evidence))
            open_now[it.kind, it.subject] = 0
    for (kind, subject), id_ in left.items():
        if kind != "slow_query":
            await conn.execute(CLOSE, id_, None, {})
            del open_now[kind, subject]
    await conn.execute(FORGET, KEPT, _FORGOTTEN_MAX)
    return {kind: sum(name == kind for name, _ in open_now) for kind in KINDS}


async def page(conn: Connection, *, before: tuple[bool, int], agent: str | None, limit: int) -> list[Record]:
    """Return recommendations, open ones first, each the newest first; with `agent`, those that concern it."""
    return await conn.fetch(PAGE, *before, agent, limit)


def view(row: Record) -> dict[str, Any]:
    """Return a recommendation as readers see it."""
    kind = KINDS[row["kind"]]
    is_open = row["closed_at"] is None
    shown: dict[str, Any] = {
        "id": row["id"],
        "kind": row["kind"],
        "subject": row["subject"],
        "state": "open" if is_open else "closed",
        "opened_at": row["opened_at"],
        "measured_at": row["measured_at"],
        "figure": {"is": kind.figure, "at_opening": row["figure"], "closes_below": kind.closes_at},
        "evidence": row["evidence"],
        "what_to_do": kind.what_to_do,
        "expected_effect": kind.expected_effect,
        "runbook": kind.runbook,
    }
    after: Mapping[str, Any] = {"figure": row["figure_now"], **({} if is_open else {"evidence": row["evidence_now"]})}
    return shown | ({"now": after} if is_open else {"closed_at": row["closed_at"], "measured_after": after})
