"""Checks the audit's hash chain, a bounded number of rows per run, again and again."""

from typing import Final

import structlog

from handoff.context import App
from handoff.store import audit
from handoff.store.connect import transact
from handoff.telemetry import metrics

log = structlog.get_logger(__name__)

INTERVAL_S: Final = 30.0  # with audit.ROWS_MAX rows per run, a million rows are checked every 50 minutes


async def run(app: App) -> None:
    """Check the next rows, and set the gauge."""
    found = await transact(app.pool, audit.check_next)
    metrics.AUDIT_BROKEN.set(found.broken_id is not None)
    if found.broken_id is not None:
        log.error("audit.broken", row=found.broken_id)
