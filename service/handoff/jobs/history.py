"""Adds minutes of series up to hours, days and months once these are over, and packs the minutes of past days."""

from time import monotonic
from typing import Final

import structlog

from handoff.context import App
from handoff.jobs.pace import pause_after
from handoff.store import history
from handoff.store.connect import transact

log = structlog.get_logger(__name__)

INTERVAL_S: Final = 300.0
_RUN_S: Final = 30.0  # after which a run begins nothing more; the next run goes on


async def run(app: App) -> None:
    """Add up and pack what is due, each period and each hundred series in a transaction, and drop months that are over."""
    until = monotonic() + _RUN_S
    for work in (history.add_up, history.pack):
        while (began := monotonic()) < until and await transact(app.pool, work):
            await pause_after(began)
    if dropped := await transact(app.pool, history.drop):
        log.info("history.dropped", tables=dropped)
