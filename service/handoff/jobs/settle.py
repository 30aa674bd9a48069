"""Settles overdue handoffs: leases lapse, and offers expire."""

from typing import Final

import structlog

from handoff.context import App
from handoff.errors import Unavailable
from handoff.store import handoffs
from handoff.store.connect import Connection, connection, transact

log = structlog.get_logger(__name__)

_BATCH_MAX: Final = 100


async def run(app: App) -> None:
    """Settle overdue handoffs, and log how many."""
    count = await settle_overdue(app)
    if count:
        log.info("settle.done", handoffs=count)


async def settle_overdue(app: App) -> int:
    """Settle overdue handoffs, each in its own transaction; return how many.

    Several processes may do this at once: each locks the handoff that it settles, and checks it again.
    """
    async with connection(app.pool) as conn:
        overdue = await handoffs.overdue(conn, _BATCH_MAX)
    return await settle_each(app, overdue)


async def settle_each(app: App, handoff_ids: list[int]) -> int:
    """Apply what is due by now to these handoffs, each in its own transaction; return for how many that succeeded."""
    settled = 0
    for handoff_id in handoff_ids:

        async def work(conn: Connection, handoff_id: int = handoff_id) -> None:
            row = await handoffs.lock(conn, handoff_id)
            if row is not None:
                await handoffs.settle(conn, row, app.settings.lapses_max)

        try:
            await transact(app.pool, work)
            settled += 1
        except Unavailable:
            raise
        except Exception:  # one that can't be settled must not block the others
            log.exception("settle.failed", handoff_id=handoff_id)
    return settled
