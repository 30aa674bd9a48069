"""Leaves calls their share of the database while a job works through a backlog."""

import asyncio
from time import monotonic
from typing import Final

PAUSE_S_MAX: Final = 1.0


async def pause_after(began: float) -> None:
    """Wait as long as a batch took that began at this monotonic time, so that the job works half of the time.

    At most PAUSE_S_MAX.
    """
    await asyncio.sleep(min(monotonic() - began, PAUSE_S_MAX))
