"""Alerts received from Alertmanager or raised by the worker, and the heartbeat of Prometheus's Watchdog alert.

All firing alerts are kept, and the 10,000 newest resolved ones.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from asyncpg import Record

from handoff.encoding import to_json
from handoff.store.connect import Connection

KEPT = 10_000  # resolved alerts
# A firing alert that no notification has mentioned for this long is resolved: four times Alertmanager's repeat interval for
# our receiver. Alertmanager sends no resolution while the alert is inhibited or silenced. If it is in fact still firing, the
# first notification afterwards makes it fire again.
FORGOTTEN_AFTER = "2 hours"
# A firing alert that was stored from memory after an outage of the database is unconfirmed. Its sender was told that it was
# not stored, so it sends it again within two minutes while it fires (Alertmanager waits at most 1 minute between attempts,
# and our group_interval is 1 minute), but sends no resolution of what was never accepted.
UNCONFIRMED_AFTER = "5 minutes"
LATE_AT_MOST = "10 minutes"  # notifications can arrive out of order: an alert resolved this recently stays resolved
_STAYS = f"alert.status = 'resolved' AND alert.updated_at > now() - interval '{LATE_AT_MOST}' AND NOT alert.unconfirmed"

RECORD = f"""
    INSERT INTO alert (fingerprint, starts_at, ends_at, status, labels, annotations, unconfirmed)
    SELECT fingerprint, starts_at,
           CASE WHEN status = 'resolved' THEN greatest(least(ends_at, now()), least(starts_at, now())) END,
           status, labels, annotations, coalesce(unconfirmed, false)
      FROM jsonb_to_recordset($1::text::jsonb) AS told
           (fingerprint text, starts_at timestamptz, ends_at timestamptz, status text, labels jsonb, annotations jsonb,
            unconfirmed boolean)
     ORDER BY fingerprint, starts_at
        ON CONFLICT (fingerprint, starts_at) DO UPDATE
       SET status = CASE WHEN {_STAYS} THEN alert.status ELSE excluded.status END,
           ends_at = CASE WHEN {_STAYS} THEN alert.ends_at ELSE excluded.ends_at END,
           annotations = CASE WHEN {_STAYS} THEN alert.annotations ELSE excluded.annotations END,
           notifications = alert.notifications + 1,
           unconfirmed = alert.unconfirmed AND excluded.unconfirmed,
           updated_at = now()
 RETURNING fingerprint, starts_at, labels, status, old.status AS was
"""
TRIM = """
    DELETE FROM alert
     WHERE (fingerprint, starts_at) IN (
           SELECT fingerprint, starts_at FROM alert WHERE (status = 'firing') = false
            ORDER BY (status = 'firing') DESC, began_at DESC, fingerprint DESC OFFSET $1 LIMIT 1000)
"""
FORGET = f"""
    UPDATE alert SET status = 'resolved', ends_at = greatest(updated_at, began_at)
     WHERE (status = 'firing') = true AND fingerprint IS DISTINCT FROM $1
       AND updated_at < now() - CASE WHEN unconfirmed THEN interval '{UNCONFIRMED_AFTER}'
                                     ELSE interval '{FORGOTTEN_AFTER}' END
"""
PAGE = """
    SELECT fingerprint, began_at AS starts_at, ends_at, status, labels ->> 'alertname' AS alertname,
           labels ->> 'severity' AS severity, labels ->> 'component' AS component, annotations ->> 'summary' AS summary,
           annotations ->> 'description' AS description, annotations ->> 'runbook_url' AS runbook_url,
           annotations ->> 'dashboard_url' AS dashboard_url, notifications, received_at, updated_at,
           (status = 'firing') AS fires
      FROM alert
     WHERE ((status = 'firing'), began_at, fingerprint) < ($1, $2, $3) AND ($4::text IS NULL OR status = $4)
     ORDER BY (status = 'firing') DESC, began_at DESC, fingerprint DESC
     LIMIT $5
"""
SINCE = """
    SELECT began_at AS starts_at, ends_at, labels ->> 'alertname' AS alertname, labels ->> 'severity' AS severity,
           annotations ->> 'summary' AS summary, count(*) OVER () AS total
      FROM alert
     WHERE status = 'firing' OR began_at >= $1
     ORDER BY began_at DESC, fingerprint DESC
     LIMIT $2
"""
HEARD = "UPDATE watchdog SET evaluated_at = $1 WHERE evaluated_at IS NULL OR evaluated_at < $1"
WATCHDOG = """
    SELECT extract(epoch FROM now() - evaluated_at)::float8 AS age_s, silent_since, told FROM watchdog
"""
SILENT = "UPDATE watchdog SET silent_since = now() WHERE silent_since IS NULL RETURNING silent_since"
BACK = "UPDATE watchdog SET silent_since = NULL WHERE silent_since = $1 RETURNING now() AS at"
TOLD = "UPDATE watchdog SET told = $1"


async def record(conn: Connection, alerts: Sequence[dict[str, Any]]) -> list[Record]:
    """Insert or update alerts, one row per fingerprint and start time, and delete the oldest resolved ones.

    Returns rows of (fingerprint, starts_at, labels, status, was). `was` is the previous status, or None if the alert is new.
    """
    rows = await conn.fetch(RECORD, to_json(alerts).decode())
    await conn.execute(TRIM, KEPT)
    return rows


async def forget(conn: Connection, but: str | None) -> None:
    """Resolve firing alerts that no notification has mentioned for FORGOTTEN_AFTER: their resolution was missed.

    For alerts that are unconfirmed it is UNCONFIRMED_AFTER. The alert whose fingerprint is `but` is left alone.
    """
    await conn.execute(FORGET, but)


async def page(
    conn: Connection, *, before: tuple[bool, datetime, str], status: str | None, limit: int
) -> tuple[list[Record], Record | None]:
    """Return a page of alerts, firing ones first, then newest first, and its last row if more follow (otherwise None)."""
    rows = await conn.fetch(PAGE, *before, status, limit + 1)
    return rows[:limit], rows[limit - 1] if len(rows) > limit else None


async def since(conn: Connection, at: datetime, limit: int) -> list[Record]:
    """Return the alerts that fire or began since `at`, newest first; the `total` of each row is how many there are."""
    return await conn.fetch(SINCE, at, limit)


async def heard(conn: Connection, evaluated_at: datetime) -> None:
    """Record a Watchdog heartbeat; one older than the newest changes nothing."""
    await conn.execute(HEARD, evaluated_at)


async def watchdog(conn: Connection) -> Record:
    """Return the Watchdog's row: (age_s, silent_since, told).

    `age_s` is the number of seconds since the newest heartbeat, or None if there has never been one.
    """
    row = await conn.fetchrow(WATCHDOG)
    assert row is not None  # noqa: S101 - the migration inserts it
    return row


async def silent(conn: Connection) -> datetime | None:
    """Mark the Watchdog as silent; return since when, or None if it was already marked."""
    return await conn.fetchval(SILENT)


async def back(conn: Connection, since: datetime) -> datetime | None:
    """Clear the silence that began at `since`; return the time now, or None if it was already cleared."""
    return await conn.fetchval(BACK, since)


async def told(conn: Connection, status: str) -> None:
    """Record the status that was last sent to the Watchdog webhook, which bypasses Alertmanager."""
    await conn.execute(TOLD, status)
