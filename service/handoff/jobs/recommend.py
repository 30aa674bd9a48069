"""Opens and closes recommendations by what it measures: processes, pool, cache, statements, tables, entries, routes."""

from functools import partial
from typing import Final

import structlog

from handoff.context import App
from handoff.store import evidence, recommendations
from handoff.store.connect import Connection, transact
from handoff.telemetry import metrics

log = structlog.get_logger(__name__)

INTERVAL_S: Final = 600.0


async def run(app: App) -> None:
    """Measure, settle the recommendations, and set their gauge."""
    found = await transact(app.pool, partial(_settle, app.settings.storage_bytes_max))
    for kind, count in found.items():
        metrics.RECOMMENDATIONS.set(count, kind)


async def _settle(storage_bytes_max: int, conn: Connection) -> dict[str, int]:
    known = await recommendations.known_statements(conn)
    return await recommendations.settle(conn, await evidence.measure(conn, storage_bytes_max, known))
