"""The versions of what is configured while the service runs. The newest is in force."""

from typing import Any, Final

from asyncpg import ForeignKeyViolationError, Record

from handoff.encoding import to_json
from handoff.errors import Conflict
from handoff.store.connect import Connection

CHANNEL: Final = "handoff_configuration"  # notified at the commit of each new version

NEWEST = "SELECT version, at, author, reason, document FROM configuration ORDER BY version DESC LIMIT 1"
NEWER_THAN = """
    SELECT version, at, author, document::text FROM configuration WHERE version > $1 ORDER BY version DESC LIMIT 1
"""
FIND = "SELECT version, at, author, reason, document FROM configuration WHERE version = $1"
PAGE = """
    SELECT version, at, author, reason, changes FROM configuration WHERE version < $1 ORDER BY version DESC LIMIT $2
"""
APPEND = """
    INSERT INTO configuration (version, author, reason, document, changes) VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (version) DO NOTHING
 RETURNING at
"""
PUT_POLICIES = """
    INSERT INTO retention_policy AS p (name, active_for, archived_for, logs_for, metrics_for, dormant_after,
                                      keeps_secrets)
    SELECT key, make_interval(hours => active_hours), make_interval(days => archived_days),
           make_interval(days => logs_days), make_interval(days => metrics_days), make_interval(mins => dormant_minutes),
           coalesce(keeps_secrets, false)
      FROM jsonb_each($1::text::jsonb),
           jsonb_to_record(value) AS it (active_hours integer, archived_days integer, logs_days integer,
                                         metrics_days integer, dormant_minutes integer,
                                         keeps_secrets boolean)
     ORDER BY key
        ON CONFLICT (name) DO UPDATE
       SET (active_for, archived_for, logs_for, metrics_for, dormant_after, keeps_secrets) =
           (excluded.active_for, excluded.archived_for, excluded.logs_for, excluded.metrics_for, excluded.dormant_after,
            excluded.keeps_secrets)
     WHERE (p.active_for, p.archived_for, p.logs_for, p.metrics_for, p.dormant_after, p.keeps_secrets) IS DISTINCT FROM
           (excluded.active_for, excluded.archived_for, excluded.logs_for, excluded.metrics_for, excluded.dormant_after,
            excluded.keeps_secrets)
"""
DROP_POLICIES = "DELETE FROM retention_policy WHERE name <> ALL ($1::text[])"
POLICY_NAMES = "SELECT name FROM retention_policy ORDER BY name LIMIT 100"
NOTIFY = "SELECT pg_notify($1, $2)"


async def newest(conn: Connection) -> Record:
    """Return the version in force."""
    row = await conn.fetchrow(NEWEST)
    assert row is not None  # noqa: S101 - the migration inserts the first
    return row


async def newer_than(conn: Connection, version: int) -> Record | None:
    """Return the version in force, its document as text; None if it is not newer than `version`."""
    return await conn.fetchrow(NEWER_THAN, version)


async def find(conn: Connection, version: int) -> Record | None:
    """Return a version, or None if there is none of this number."""
    return await conn.fetchrow(FIND, version)


async def page(conn: Connection, *, before: int, limit: int) -> tuple[list[Record], bool]:
    """Return a page of versions, newest first, and whether older ones follow."""
    rows = await conn.fetch(PAGE, before, limit + 1)
    return rows[:limit], len(rows) > limit


async def policy_names(conn: Connection) -> list[str]:
    """Return the names of the retention policies."""
    return [row["name"] for row in await conn.fetch(POLICY_NAMES)]


async def put(
    conn: Connection, version: int, author: str, reason: str, document: dict[str, Any], changes: list[dict[str, Any]]
) -> Record:
    """Append a version in the caller's transaction, and make the retention policies what it says; return its time.

    Raises Conflict if there is such a version by now, and if a policy that it lacks is that of a session.
    """
    row = await conn.fetchrow(APPEND, version, author, reason, document, changes)
    if row is None:
        raise changed_meanwhile(version - 1)
    await conn.execute(PUT_POLICIES, to_json(document["retention"]).decode())
    try:
        await conn.execute(DROP_POLICIES, list(document["retention"]))
    except ForeignKeyViolationError as error:
        raise Conflict(
            "policy_in_use",
            "A retention policy that this change removes is that of a session.",
            "Keep the policy, and change its periods instead.",
        ) from error
    await conn.execute(NOTIFY, CHANNEL, str(version))
    return row


def changed_meanwhile(expected: int) -> Conflict:
    """Return the error for a change of a version that is no longer the newest."""
    return Conflict(
        "configuration_changed",
        f"Version {expected} of the configuration is not the one in force.",
        "Call configuration action=get, look at what has changed, and repeat your change with its version as "
        "expected_version.",
    )
