"""Turns what happened into points of series, minute by minute."""

from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Final

from handoff.context import App
from handoff.store import performance, rollups, series
from handoff.store.connect import Connection, transact
from handoff.telemetry import metrics

INTERVAL_S: Final = 60.0
SOURCES: Final = (rollups.from_events, performance.points)
FIRST: Final = timedelta(days=14)  # of the past that a new installation of the series begins with
PIECE: Final = timedelta(minutes=10)  # in a transaction; the next one has as many minutes as should take _PIECE_S
_PIECE_MAX: Final = timedelta(hours=6)
_PIECE_S: Final = 1.0  # which also bounds its memory, however many series and events there are
NOW = "SELECT now()"


async def run(app: App) -> None:
    """Write the points of all minutes that have ended since the last run."""
    is_behind, refused, piece = True, 0, PIECE
    while is_behind:

        async def work(conn: Connection, piece: timedelta = piece) -> tuple[bool, int]:
            await rollups.allow_time(conn)
            now: datetime = await conn.fetchval(NOW)
            end = now.replace(second=0, microsecond=0)
            done = await series.progress(conn, "rolled_up")
            # Read again each time: a transaction that began earlier may have been committed since.
            since = end - FIRST if done is None else min(done, end) - series.LATE
            until = min(end, since + series.LATE + piece)
            points = [point for source in SOURCES for point in await source(conn, since.astimezone(UTC), until)]
            refused = await series.put(conn, points, app.settings.series_max)
            await series.advance(conn, "rolled_up", until)
            return until < end, refused

        began = monotonic()
        is_behind, more = await transact(app.pool, work)
        refused = max(refused, more)
        factor = min(4.0, max(0.25, _PIECE_S / max(monotonic() - began, 0.001)))
        piece = min(_PIECE_MAX, max(series.MINUTE, piece * factor // series.MINUTE * series.MINUTE))
    metrics.SERIES_REFUSED.set(refused)
