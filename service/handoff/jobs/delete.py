"""Deletes archived sessions when their policy's time has passed, unless they are held, and what the archive has of them."""

from functools import partial
from time import monotonic
from typing import Final

import structlog

from handoff.context import App
from handoff.errors import Unavailable
from handoff.jobs.pace import pause_after
from handoff.store import erasure
from handoff.store.connect import connection, transact

log = structlog.get_logger(__name__)

BATCH_MAX: Final = 500  # sessions per run; the next run goes on
_BUCKETS_MAX: Final = 20  # per run
_RUN_S: Final = 30.0  # after which a run begins no other session
_REASON: Final = "The time of its retention policy has passed."


async def run(app: App) -> None:
    """Delete sessions, each in its own transaction, then drop the buckets of the archive that nobody can read any more."""
    began, deleted, dropped = monotonic(), 0, 0
    async with connection(app.pool) as conn:
        due = await erasure.due(conn, BATCH_MAX)
    for session_id in due:
        if (began_one := monotonic()) - began > _RUN_S:
            break
        try:
            done = await transact(app.pool, partial(erasure.erase, session_id=session_id, actor=None, reason=_REASON))
            deleted += done.outcome == "deleted"
        except Unavailable:
            raise
        except Exception:  # one that can't be deleted must not block the others
            log.exception("delete.failed", session_id=session_id)
        await pause_after(began_one)
    async with connection(app.pool) as conn:
        over = await erasure.buckets_over(conn, _BUCKETS_MAX)
    for name in over:
        try:
            await transact(app.pool, partial(erasure.drop_bucket, name=name))
            dropped += 1
        except Unavailable:
            raise
        except Exception:
            log.exception("delete.bucket_failed", bucket=name)
    if deleted or dropped:
        log.info("session.deleted", sessions=deleted, archive_buckets_dropped=dropped)
