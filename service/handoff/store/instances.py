"""Processes that are alive: each writes its own row again and again; who is not seen any more is forgotten."""

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
    """This process is alive. `operations` is host:port of its operations port."""
    await conn.execute(SEEN, id_, kind, version, operations, does_jobs)
    await conn.execute(FORGET)


async def jobs_done(conn: Connection, id_: str) -> None:
    """This process has just done the jobs."""
    await conn.execute(JOBS_DONE, id_)


async def jobs_age(conn: Connection) -> float | None:
    """Seconds since any process did the jobs; None if none that is remembered ever did."""
    return await conn.fetchval(JOBS_AGE)


async def gone(conn: Connection, id_: str) -> None:
    """This process has ended."""
    await conn.execute(GONE, id_)


async def alive(conn: Connection, within_s: float) -> list[Record]:
    """Who was seen within `within_s` seconds."""
    return await conn.fetch(ALIVE, within_s)
