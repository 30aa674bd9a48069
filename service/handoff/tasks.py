"""Ends what runs in the background."""

import asyncio
from collections.abc import Collection
from typing import Any, Final

import structlog

log = structlog.get_logger(__name__)

# After each cancellation; the first is longer, for what the tasks tidy up.
PATIENCE_S: Final = (0.6, 0.2, 0.2)


async def end_tasks(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel tasks until they have ended: where a statement's time limit ends at the same moment, a cancellation is lost.

    What is left after the last one is left to the end of the event loop, which cancels whatever there is.
    """
    pending = set(tasks)
    for patience_s in PATIENCE_S:
        if not pending:
            return
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=patience_s)
    if pending:
        log.warning("process.tasks_left", tasks=len(pending))
