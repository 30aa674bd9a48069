"""Shards of series: which process judges which of them, and how far each has been judged.

A process claims a shard for LEASE, and renews that while it works. What it found is written only if the claim is still its
own: a process that was stopped for longer changes nothing when it goes on, because another one may have judged the shard
meanwhile.
"""

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from asyncpg import Record

from handoff.store.connect import Connection

SERIES: Final = 1_000  # per shard: neighbouring ids, because neighbours mostly begin together
LEASE: Final = timedelta(seconds=10)
RENEWED_S: Final = 2.0

# A new shard begins where all others are: its series are new. One whose series have been forgotten is forgotten too.
APPEAR = """
    WITH wanted AS (SELECT DISTINCT id / $1 AS shard FROM series),
    gone AS (DELETE FROM detector_shard WHERE shard NOT IN (SELECT shard FROM wanted))
    INSERT INTO detector_shard (shard, at)
    SELECT shard, (SELECT at FROM analytics_progress WHERE stage = 'judged') FROM wanted
        ON CONFLICT DO NOTHING
"""
CLAIM = """
    UPDATE detector_shard SET holder = $1, held_until = now() + $2::interval
     WHERE shard = (SELECT shard FROM detector_shard
                     WHERE (at IS NULL OR at < $3) AND (held_until IS NULL OR held_until < now())
                       AND shard <> ALL ($4::int[])
                     ORDER BY at NULLS FIRST, shard LIMIT 1
                       FOR UPDATE SKIP LOCKED)
 RETURNING shard, at
"""
RENEW = "UPDATE detector_shard SET held_until = now() + $2::interval WHERE holder = $1 AND held_until > now()"
RELEASE = "UPDATE detector_shard SET holder = NULL, held_until = NULL WHERE holder = $1"
BEHIND = "SELECT EXISTS (SELECT FROM detector_shard WHERE (at IS NULL OR at < $1) AND shard <> ALL ($2::int[]))"
# Whoever commits second sees what the first has committed, so that the progress of all is that of the last shard.
LOCK = """
    INSERT INTO analytics_progress (stage, at) VALUES ('judged', $1)
        ON CONFLICT (stage) DO UPDATE SET at = analytics_progress.at
"""
ADVANCE = """
    UPDATE detector_shard SET at = $3, newest = coalesce($4, newest) WHERE shard = $1 AND holder = $2 RETURNING shard
"""
NEWEST = """
    SELECT series.id, name, labels, it.value, it.expected, it.lower, it.upper
      FROM detector_shard, jsonb_to_recordset(newest)
                               AS it(id bigint, value float8, expected float8, lower float8, upper float8)
      JOIN series ON series.id = it.id
"""
PROGRESS = """
    UPDATE analytics_progress SET at = coalesce((SELECT min(at) FROM detector_shard), at) WHERE stage = 'judged' RETURNING at
"""


class ShardLost(Exception):
    """Another process has claimed the shard meanwhile; what was found must not be written."""


async def appear(conn: Connection) -> None:
    """Make the shards of all series that there are."""
    await conn.execute(APPEAR, SERIES)


async def is_behind(conn: Connection, until: datetime, without: Collection[int] = ()) -> bool:
    """Whether a shard, claimed or not, has minutes before `until` that are not judged; `without` names some to leave out."""
    return await conn.fetchval(BEHIND, until, list(without))


async def claim(conn: Connection, holder: UUID, until: datetime, without: Collection[int] = ()) -> Record | None:
    """Claim a shard that has minutes before `until` to judge, and is none of `without`.

    Return its number and how far it is judged, None if none is free.
    """
    return await conn.fetchrow(CLAIM, holder, LEASE, until, list(without))


async def renew(conn: Connection, holder: UUID) -> None:
    """Keep what was claimed for another LEASE, unless that is over already."""
    await conn.execute(RENEW, holder, LEASE)


async def release(conn: Connection, holder: UUID) -> None:
    """Let others claim what was claimed."""
    await conn.execute(RELEASE, holder)


async def newest(conn: Connection) -> list[Record]:
    """What was expected of the newest minute: a row per series, NULL for what is not known."""
    return await conn.fetch(NEWEST)


async def advance(
    conn: Connection, shard: int, holder: UUID, at: datetime, expected: list[dict[str, float | None]] | None = None
) -> datetime:
    """Note how far a shard is judged, and what was expected there; return how far all are. To be called before other writes.

    Raises ShardLost if it is claimed by another process, or by none.
    """
    await conn.execute(LOCK, at)
    if await conn.fetchval(ADVANCE, shard, holder, at, expected) is None:
        raise ShardLost(f"shard {shard}")
    return await conn.fetchval(PROGRESS)
