"""Measures what the tables take on disk and how fast that grows, and forecasts when the limit will be reached."""

from typing import Final

from handoff.context import App
from handoff.store import storage
from handoff.store.connect import snapshot, transact
from handoff.telemetry import metrics

INTERVAL_S: Final = 3_600.0


async def run(app: App) -> None:
    """Measure the tables, and set the gauges."""
    await transact(app.pool, storage.measure)
    async with snapshot(app.pool) as conn:
        found = await storage.read(conn, app.settings.storage_bytes_max)
    metrics.STORAGE_SIZE.reset()
    for table in found.tables:
        metrics.STORAGE_SIZE.set(table["bytes"], table["name"])
    metrics.STORAGE_GROWTH.set(found.bytes_per_day)
    metrics.STORAGE_LIMIT.set(app.settings.storage_bytes_max)
    if found.full_in_s is None:
        metrics.STORAGE_FULL_IN.reset()
    else:
        metrics.STORAGE_FULL_IN.set(found.full_in_s)
