"""Checks entries, also archived ones, by hash, sequence number and receipt; sets aside sessions in which one doesn't fit."""

from time import monotonic
from typing import Final

import structlog

from handoff.context import App
from handoff.store import integrity
from handoff.store.connect import connection, transact
from handoff.telemetry import metrics

log = structlog.get_logger(__name__)

INTERVAL_S: Final = 60.0
_RUN_S: Final = 5.0  # after which a run begins no other batch, of the entries and then of the archive; the next run goes on


async def run(app: App) -> None:
    """Check batches of entries, each in its own transaction, until all are checked or the time is over."""
    for check in (integrity.check_next, integrity.check_next_in_archive):
        began = monotonic()
        while monotonic() - began < _RUN_S:
            done = await transact(app.pool, check)
            metrics.ENTRIES_CHECKED.add(done.entries)
            if done.set_aside is not None:
                log.error("integrity.quarantined", sessions=done.set_aside)
            if done.entries == 0:
                break
    async with connection(app.pool) as conn:
        found = await integrity.counts(conn)
    for reason, sessions in found.items():
        metrics.QUARANTINED.set(sessions, reason)
