"""Turns what happened into points of series, minute by minute."""

from datetime import UTC, datetime, timedelta
from typing import Final

from handoff.context import App
from handoff.store import rollups, series
from handoff.store.connect import Connection, transact
from handoff.telemetry import metrics

INTERVAL_S: Final = 60.0
SOURCES: Final = (rollups.from_events,)
LATE: Final = timedelta(minutes=5)  # read again each time: a transaction that began earlier may have been committed since
FIRST: Final = timedelta(days=14)  # of the past that a new installation of the series begins with
_RUN_MAX: Final = timedelta(hours=6)  # per transaction, so that catching up after weeks takes bounded memory
_NOW = "SELECT now()"


async def run(app: App) -> None:
    """Write the points of all minutes that have ended since the last run."""
    is_behind, refused = True, 0
    while is_behind:

        async def work(conn: Connection) -> tuple[bool, int]:
            now: datetime = await conn.fetchval(_NOW)
            end = now.replace(second=0, microsecond=0)
            done = await series.progress(conn, "rolled_up")
            since = end - FIRST if done is None else min(done, end) - LATE
            until = min(end, since + _RUN_MAX + LATE)
            points = [point for source in SOURCES for point in await source(conn, since.astimezone(UTC), until)]
            refused = await series.put(conn, points, app.settings.series_max)
            await series.advance(conn, "rolled_up", until)
            return until < end, refused

        is_behind, more = await transact(app.pool, work)
        refused = max(refused, more)
    metrics.SERIES_REFUSED.set(refused)
