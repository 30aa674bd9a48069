"""Archives sessions that have been closed for a while: their entries move to the archive, where they take less space."""

from datetime import timedelta
from functools import partial
from time import monotonic
from typing import Final

import structlog

from handoff.context import App
from handoff.errors import Unavailable
from handoff.jobs.pace import pause_after
from handoff.store import archive
from handoff.store.connect import connection, transact

log = structlog.get_logger(__name__)

BATCH_MAX: Final = 200  # sessions per run; the next run goes on
_RUN_S: Final = 30.0  # after which a run begins no other session


async def run(app: App) -> None:
    """Archive sessions, each in its own transaction, and log how many. One that can't be archived is tried again later."""
    began, moved = monotonic(), 0
    async with connection(app.pool) as conn:
        due = await archive.due(conn, timedelta(seconds=app.settings.archive_after_s), BATCH_MAX)
    for session_id in due:
        if (began_one := monotonic()) - began > _RUN_S:
            break
        try:
            moved += await transact(app.pool, partial(archive.move, session_id=session_id)) is not None
        except Unavailable:
            raise
        except Exception as error:
            name = type(error).__name__
            failed = await transact(app.pool, partial(archive.failed, session_id=session_id, error=name))
            if failed is not None:
                log.exception(
                    "archive.failed", session_id=session_id, attempts=failed["attempts"], next_at=failed["next_at"]
                )
        await pause_after(began_one)
    if moved:
        log.info("session.archived", sessions=moved)
