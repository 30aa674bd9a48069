"""Leaves calls their share of the processors and the disk while a job works through a backlog."""

import asyncio
from time import monotonic
from typing import Final

SHARE: Final = 0.2  # of its time that a job works


async def pause_after(began: float) -> None:
    """Wait after a batch that began at this monotonic time, so that the job works for SHARE of its time."""
    await asyncio.sleep((monotonic() - began) * (1 / SHARE - 1))
