"""Running processes: each one refreshes its own row, and rows not refreshed for an hour are deleted."""

from asyncpg import Record

from handoff.store.connect import Connection

SEEN = """
    INSERT INTO instance (id, kind, version, operations, does_jobs, started_at, seen_at)
    VALUES ($1, $2, $3, $4, $5, now(), now())
    ON CONFLICT (id) DO UPDATE SET seen_at = now()
"""
FORGET = "DELETE FROM instance WHERE seen_at < now() - interval '1 hour'"
JOBS_DONE = "UPDATE instance SET jobs_at = now() WHERE id = $1"
JOBS_AGE = "SELECT extract(epoch FROM now() - max(jobs_at))::float8 FROM instance"
GONE = "DELETE FROM instance WHERE id = $1"
ALIVE = """
    SELECT id, kind, version, operations, does_jobs, extract(epoch FROM now() - seen_at)::float8 AS age_s
      FROM instance
     WHERE seen_at > now() - make_interval(secs => $1)
     ORDER BY kind, id
     LIMIT 1000
"""


async def seen(conn: Connection, id_: str, kind: str, version: str, operations: str | None, *, does_jobs: bool) -> None:
    """Record that this process is alive. `operations` is the host:port of its operations port, or None if it has none."""
    await conn.execute(SEEN, id_, kind, version, operations, does_jobs)
    await conn.execute(FORGET)


async def jobs_done(conn: Connection, id_: str) -> None:
    """Record that this process has just run the jobs."""
    await conn.execute(JOBS_DONE, id_)


async def jobs_age(conn: Connection) -> float | None:
    """Return the seconds since any known process last ran the jobs, or None if none has."""
    return await conn.fetchval(JOBS_AGE)


async def gone(conn: Connection, id_: str) -> None:
    """Delete the row of this process, which is stopping."""
    await conn.execute(GONE, id_)


async def alive(conn: Connection, within_s: float) -> list[Record]:
    """Return the processes that refreshed their row within the last `within_s` seconds, at most 1,000."""
    return await conn.fetch(ALIVE, within_s)
