"""The jobs: statistics of their runs, and what operators ask of them."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from datetime import datetime

from asyncpg import Record

from handoff.store.connect import Connection

# Ages instead of times, because the clocks of processes differ from the database's.
ADD = """
    INSERT INTO job AS j (name, runs, failures, total_s, last_s, last_success_at, last_failure_at, last_error, next_run_at)
    SELECT name, runs, failures, total_s, last_s, now() - make_interval(secs => success_age_s),
           now() - make_interval(secs => failure_age_s), error, now() + make_interval(secs => next_s)
      FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::float8[], $5::float8[], $6::float8[], $7::float8[], $8::text[],
                  $9::float8[])
           AS t (name, runs, failures, total_s, last_s, success_age_s, failure_age_s, error, next_s)
        ON CONFLICT (name) DO UPDATE
       SET runs = j.runs + excluded.runs, failures = j.failures + excluded.failures, total_s = j.total_s + excluded.total_s,
           last_s = excluded.last_s, last_success_at = coalesce(excluded.last_success_at, j.last_success_at),
           last_failure_at = coalesce(excluded.last_failure_at, j.last_failure_at),
           last_error = coalesce(excluded.last_error, j.last_error),
           next_run_at = CASE WHEN j.paused_at IS NULL THEN excluded.next_run_at END
"""
ANSWER = """
    UPDATE job SET asked_at = NULL FROM unnest($1::text[], $2::timestamptz[]) AS t (name, asked_at)
     WHERE job.name = t.name AND job.asked_at = t.asked_at
"""
ORDERS = (
    "SELECT name, paused_at IS NOT NULL AS is_paused, asked_at FROM job WHERE paused_at IS NOT NULL OR asked_at IS NOT NULL"
)
COLUMNS = """name, runs, runs - failures AS successes, failures, total_s / nullif(runs, 0) AS mean_s, last_s,
             last_success_at, last_failure_at, last_error, next_run_at, paused_at, paused_by, asked_at"""
LIST = f"SELECT {COLUMNS} FROM job ORDER BY name LIMIT 200"
FIND = f"SELECT {COLUMNS} FROM job WHERE name = $1"
ASK = f"""
    INSERT INTO job AS j (name, asked_at) VALUES ($1, now())
    ON CONFLICT (name) DO UPDATE SET asked_at = coalesce(j.asked_at, now()) RETURNING {COLUMNS}
"""
PAUSE = f"""
    INSERT INTO job AS j (name, paused_at, paused_by) VALUES ($1, now(), $2)
    ON CONFLICT (name) DO UPDATE
   SET paused_at = coalesce(j.paused_at, now()), paused_by = coalesce(j.paused_by, $2), next_run_at = NULL
    RETURNING {COLUMNS}
"""
RESUME = f"""
    INSERT INTO job AS j (name) VALUES ($1)
    ON CONFLICT (name) DO UPDATE SET paused_at = NULL, paused_by = NULL RETURNING {COLUMNS}
"""


@dataclass(slots=True)
class Runs:
    """Runs of a job that are not in the database yet. Ages and `next_s` are in seconds from now."""

    name: str
    runs: int
    failures: int
    total_s: float
    last_s: float
    success_age_s: float | None
    failure_age_s: float | None
    error: str | None
    next_s: float


@dataclass(frozen=True, slots=True)
class Orders:
    """What operators ask: the jobs that are paused, and those that are to run now, with the time they were asked to."""

    paused: frozenset[str]
    asked: dict[str, datetime]


async def add(conn: Connection, runs: Sequence[Runs], answered: dict[str, datetime]) -> None:
    """Add runs to the statistics, and forget the orders that they carried out."""
    if runs:
        columns = [list(column) for column in zip(*(astuple(it) for it in runs), strict=True)]
        await conn.execute(ADD, *columns)
    if answered:
        await conn.execute(ANSWER, list(answered), list(answered.values()))


async def orders(conn: Connection) -> Orders:
    """Return what operators ask now."""
    rows = await conn.fetch(ORDERS)
    asked = {row["name"]: row["asked_at"] for row in rows if row["asked_at"] is not None}
    return Orders(frozenset(row["name"] for row in rows if row["is_paused"]), asked)


async def page(conn: Connection) -> list[Record]:
    """Return all jobs that have run or are paused, by name."""
    return await conn.fetch(LIST)


async def find(conn: Connection, name: str) -> Record | None:
    """Return a job, or None if it has neither run nor been paused."""
    return await conn.fetchrow(FIND, name)


async def ask(conn: Connection, name: str) -> Record:
    """Ask for a run of this job as soon as possible; return the job."""
    return await _changed(conn, ASK, name)


async def pause(conn: Connection, name: str, by: str) -> Record:
    """Let the job not run until it is resumed; return it. A job that is paused already stays so."""
    return await _changed(conn, PAUSE, name, by)


async def resume(conn: Connection, name: str) -> Record:
    """Let a paused job run again; return it."""
    return await _changed(conn, RESUME, name)


async def _changed(conn: Connection, statement: str, *arguments: str) -> Record:
    row = await conn.fetchrow(statement, *arguments)
    assert row is not None  # noqa: S101 - an upsert returns its row
    return row
