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


async def jump(db: asyncpg.Connection, *, hours: float) -> None:
    """Let so many hours pass for everything in the database."""
    async with db.transaction():
        for statement in (_SESSIONS, _HANDOFFS):
            await db.execute(statement, timedelta(hours=hours))
