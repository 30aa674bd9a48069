"""Expires sessions whose time is over, after ending their open handoffs."""

from functools import partial
from typing import Final

import structlog

from handoff.context import App
from handoff.jobs.settle import settle_each
from handoff.store import lifecycle
from handoff.store.connect import transact

log = structlog.get_logger(__name__)

BATCHES_MAX: Final = 20  # per run; the next run goes on


async def run(app: App) -> None:
    """Expire sessions, in batches, and log how many. A run that is killed loses at most its last batch.

    A session whose handoffs did not all end is looked at again after a minute.
    """
    changed = handoffs = 0
    for _ in range(BATCHES_MAX):
        batch = await transact(app.pool, lifecycle.expire)
        changed += batch.changed
        if batch.sessions:
            handoffs += await settle_each(app, batch.handoffs)
            changed += await transact(app.pool, partial(lifecycle.expire_after_handoffs, session_ids=batch.sessions))
        if batch.looked_at < lifecycle.BATCH_MAX:
            break
    if changed:
        log.info("session.expired", sessions=changed, handoffs=handoffs)
