"""Applies migrations/*.sql in order, each in its own transaction, all under one advisory lock. There is no way back.

A migration whose first line begins with `-- concurrently` has no transaction: its statements, which end with a semicolon at
the end of a line, are run one by one, as CREATE INDEX CONCURRENTLY demands. If one fails, the next start runs all again.
"""

import asyncio
import hashlib
import re
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from handoff.settings import Settings
from handoff.store.connect import Connection, connect_alone

LOCK_KEY = 0x68616E64  # "hand" in ASCII; advisory lock keys must be unique within a database
_APPLY_S_MAX = 24 * 3_600.0  # how long one migration may take: that depends on the amount of data
_RETRY_S = 0.1
_CONCURRENTLY = "-- concurrently"
_FILE_NAME = re.compile(r"^(\d{4})_[a-z0-9_]+\.sql$")

CREATE_LEDGER = """
    CREATE TABLE IF NOT EXISTS schema_migration (
        version    integer PRIMARY KEY,
        name       text NOT NULL,
        sha256     text NOT NULL,
        applied_at timestamptz NOT NULL DEFAULT now()
    )
"""
READ_LEDGER = "SELECT version, name, sha256 FROM schema_migration ORDER BY version LIMIT 10000"
RECORD = "INSERT INTO schema_migration (version, name, sha256) VALUES ($1, $2, $3)"
TRY_LOCK = "SELECT pg_try_advisory_lock($1)"
LEDGER_EXISTS = "SELECT to_regclass('schema_migration') IS NOT NULL"


@dataclass(frozen=True, slots=True)
class Migration:
    """One file in migrations/."""

    version: int
    name: str
    sql: str
    sha256: str

    @property
    def statements(self) -> list[str]:
        """What is sent to Postgres at once: the whole file, or each statement of one that has no transaction."""
        if not self.sql.startswith(_CONCURRENTLY):
            return [self.sql]
        return [found for found in re.split(r";[ \t]*(?:\n|$)", self.sql) if found.strip()]


class MigrationError(Exception):
    """An applied migration differs from the file of the same version in this release."""


@cache
def migrations() -> tuple[Migration, ...]:
    """Return the migrations of this release, in order."""
    found: list[Migration] = []
    for entry in files("handoff.store").joinpath("migrations").iterdir():
        match = _FILE_NAME.match(entry.name)
        if match:
            sql = entry.read_text(encoding="utf-8")
            found.append(Migration(int(match[1]), entry.name, sql, hashlib.sha256(sql.encode()).hexdigest()))
    return tuple(sorted(found, key=lambda migration: migration.version))


async def migrate(settings: Settings) -> list[str]:
    """Apply all pending migrations and return their names.

    Any number of processes may call this at once: the first applies the migrations and the others wait for it.
    A database that is newer than this release is left unchanged. Raises MigrationError if an applied file has changed.
    """
    # Postgres ends a migration whose client has gone, so that the next one does not wait for it.
    conn = await connect_alone(settings, statement_timeout="0", client_connection_check_interval="10s")
    try:
        while not await conn.fetchval(TRY_LOCK, LOCK_KEY):  # noqa: ASYNC110 - another process holds it
            await asyncio.sleep(_RETRY_S)  # rather than wait in Postgres, so that each statement can have a time limit
        await conn.execute(CREATE_LEDGER)
        return [migration.name for migration in await _pending(conn) if await _apply(conn, migration)]
    finally:
        await conn.close(timeout=settings.connect_timeout_s)


async def pending(conn: Connection) -> list[str]:
    """Return the names of the migrations not applied yet. Raises MigrationError if an applied file has changed."""
    if not await conn.fetchval(LEDGER_EXISTS):
        return [migration.name for migration in migrations()]
    return [migration.name for migration in await _pending(conn)]


async def _pending(conn: Connection) -> list[Migration]:
    applied = {row["version"]: row for row in await conn.fetch(READ_LEDGER)}
    for migration in migrations():
        row = applied.get(migration.version)
        if row is not None and row["sha256"] != migration.sha256:
            raise MigrationError(
                f"{migration.name} was changed after it had been applied as {row['name']}. "
                "Restore the file, and put the change into a new migration."
            )
    return [migration for migration in migrations() if migration.version not in applied]


async def _apply(conn: Connection, migration: Migration) -> bool:
    async with nullcontext() if migration.sql.startswith(_CONCURRENTLY) else conn.transaction():
        for statement in migration.statements:
            await conn.execute(statement, timeout=_APPLY_S_MAX)
        await conn.execute(RECORD, migration.version, migration.name, migration.sha256)
    return True
