"""Alerts that were told of, and the Watchdog's heartbeat. The newest 10,000 that are over are kept, and all that fire."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from asyncpg import Record

from handoff.encoding import to_json
from handoff.store.connect import Connection

KEPT = 10_000
# Of an alert that fires: four times as long as Alertmanager's route to us repeats it. Its end is not told while something
# worse mutes it, or a silence; one that was only silent fires again with the first notification after that.
FORGOTTEN_AFTER = "2 hours"
LATE_AT_MOST = "10 minutes"  # notifications may arrive in any order: what was over so short a while ago stays over
_STAYS = f"alert.status = 'resolved' AND alert.updated_at > now() - interval '{LATE_AT_MOST}'"

RECORD = f"""
    INSERT INTO alert (fingerprint, starts_at, ends_at, status, labels, annotations)
    SELECT fingerprint, starts_at, ends_at, status, labels, annotations
      FROM jsonb_to_recordset($1::text::jsonb) AS told
           (fingerprint text, starts_at timestamptz, ends_at timestamptz, status text, labels jsonb, annotations jsonb)
     ORDER BY fingerprint, starts_at
        ON CONFLICT (fingerprint, starts_at) DO UPDATE
       SET status = CASE WHEN {_STAYS} THEN alert.status ELSE excluded.status END,
           ends_at = CASE WHEN {_STAYS} THEN alert.ends_at ELSE excluded.ends_at END,
           annotations = CASE WHEN {_STAYS} THEN alert.annotations ELSE excluded.annotations END,
           notifications = alert.notifications + 1,
           updated_at = now()
 RETURNING labels, status, old.status AS was
"""
TRIM = """
    DELETE FROM alert
     WHERE (fingerprint, starts_at) IN (
           SELECT fingerprint, starts_at FROM alert WHERE (status = 'firing') = false
            ORDER BY (status = 'firing') DESC, starts_at DESC, fingerprint DESC OFFSET $1 LIMIT 1000)
"""
FORGET = f"""
    UPDATE alert SET status = 'resolved', ends_at = greatest(updated_at, starts_at)
     WHERE (status = 'firing') = true AND updated_at < now() - interval '{FORGOTTEN_AFTER}' AND fingerprint <> $1
"""
PAGE = """
    SELECT fingerprint, starts_at, ends_at, status, labels ->> 'alertname' AS alertname, labels ->> 'severity' AS severity,
           labels ->> 'component' AS component, annotations ->> 'summary' AS summary,
           annotations ->> 'description' AS description, annotations ->> 'runbook_url' AS runbook_url,
           annotations ->> 'dashboard_url' AS dashboard_url, notifications, received_at, updated_at,
           (status = 'firing') AS fires
      FROM alert
     WHERE ((status = 'firing'), starts_at, fingerprint) < ($1, $2, $3) AND ($4::text IS NULL OR status = $4)
     ORDER BY (status = 'firing') DESC, starts_at DESC, fingerprint DESC
     LIMIT $5
"""
HEARD = "UPDATE watchdog SET evaluated_at = $1 WHERE evaluated_at IS NULL OR evaluated_at < $1"
WATCHDOG = """
    SELECT extract(epoch FROM now() - evaluated_at)::float8 AS age_s, silent_since, told FROM watchdog
"""
SILENT = "UPDATE watchdog SET silent_since = now() WHERE silent_since IS NULL RETURNING silent_since"
BACK = "UPDATE watchdog SET silent_since = NULL WHERE silent_since = $1 RETURNING now() AS at"
TOLD = "UPDATE watchdog SET told = $1"


async def record(conn: Connection, alerts: Sequence[dict[str, Any]]) -> list[Record]:
    """Keep alerts, each pair of fingerprint and start once. Rows of (labels, status, was); `was` is None for a new one."""
    rows = await conn.fetch(RECORD, to_json(alerts).decode())
    await conn.execute(TRIM, KEPT)
    return rows


async def forget(conn: Connection, but: str) -> None:
    """End alerts that nobody has told of for so long that their end was missed; never the one with fingerprint `but`."""
    await conn.execute(FORGET, but)


async def page(
    conn: Connection, *, before: tuple[bool, datetime, str], status: str | None, limit: int
) -> tuple[list[Record], Record | None]:
    """Alerts, those that fire first, then the newest first; and the last of the page if there are more."""
    rows = await conn.fetch(PAGE, *before, status, limit + 1)
    return rows[:limit], rows[limit - 1] if len(rows) > limit else None


async def heard(conn: Connection, evaluated_at: datetime) -> None:
    """A heartbeat; one older than the newest changes nothing."""
    await conn.execute(HEARD, evaluated_at)


async def watchdog(conn: Connection) -> Record:
    """(age_s, silent_since, told): seconds since the newest heartbeat, None if there never was one."""
    row = await conn.fetchrow(WATCHDOG)
    assert row is not None  # noqa: S101 - the migration made it
    return row


async def silent(conn: Connection) -> datetime | None:
    """It has fallen silent; since when, or None if that was known."""
    return await conn.fetchval(SILENT)


async def back(conn: Connection, since: datetime) -> datetime | None:
    """It is heard again; when, or None if that was known."""
    return await conn.fetchval(BACK, since)


async def told(conn: Connection, status: str) -> None:
    """What was said last outside of Alertmanager."""
    await conn.execute(TOLD, status)
