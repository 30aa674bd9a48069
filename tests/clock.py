"""Lets time pass for the sessions and handoffs of a database, without waiting: their times move into the past instead."""

from datetime import timedelta

import asyncpg

_SESSIONS = """
    UPDATE session SET created_at = created_at - $1::interval, expires_at = expires_at - $1,
                       last_activity_at = last_activity_at - $1, status_since = status_since - $1,
                       idle_check_at = idle_check_at - $1, expiry_check_at = expiry_check_at - $1
"""
_HANDOFFS = """
    UPDATE handoff SET created_at = created_at - $1::interval, updated_at = updated_at - $1, deadline = deadline - $1,
                       lease_expires_at = lease_expires_at - $1, accepted_at = accepted_at - $1
"""
# What was archived lies in the bucket of that week.
_ARCHIVE = """
    DO $$
    DECLARE
        it record;
    BEGIN
        FOR it IN SELECT DISTINCT s.retention_policy AS policy, date_trunc('week', s.status_since)::date AS monday,
                         format('archive_%s_%s', date_trunc('week', s.status_since)::date, s.retention_policy) AS partition
                    FROM archive a JOIN session s ON s.id = a.session_id LOOP
            INSERT INTO archive_bucket VALUES (it.policy || ' ' || it.monday, it.policy, it.monday, it.partition)
            ON CONFLICT DO NOTHING;
            IF FOUND THEN
                EXECUTE format('CREATE TABLE %I PARTITION OF archive FOR VALUES IN (%L)',
                               it.partition, it.policy || ' ' || it.monday);
            END IF;
        END LOOP;
        UPDATE archive a SET bucket = s.retention_policy || ' ' || date_trunc('week', s.status_since)::date
          FROM session s WHERE s.id = a.session_id;
    END
    $$
"""


async def jump(db: asyncpg.Connection, *, hours: float) -> None:
    """Let so many hours pass for everything in the database."""
    async with db.transaction():
        await db.execute("SET LOCAL timezone = 'UTC'")
        for statement in (_SESSIONS, _HANDOFFS):
            await db.execute(statement, timedelta(hours=hours))
        await db.execute(_ARCHIVE)
