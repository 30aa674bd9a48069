"""Makes sessions dormant that have been idle for longer than their policy says, and of which nothing is on offer or held."""

from typing import Final

import structlog

from handoff.context import App
from handoff.store import lifecycle
from handoff.store.connect import transact

log = structlog.get_logger(__name__)

BATCHES_MAX: Final = 20  # per run; the next run goes on


async def run(app: App) -> None:
    """Make idle sessions dormant, in batches, and log how many. A run that is killed loses at most its last batch."""
    changed = 0
    for _ in range(BATCHES_MAX):
        batch = await transact(app.pool, lifecycle.put_to_sleep)
        changed += batch.changed
        if batch.looked_at < lifecycle.BATCH_MAX:
            break
    if changed:
        log.info("session.dormant", sessions=changed)
