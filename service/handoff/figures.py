"""Figures that are costly to compute: kept for a while, and shown once more while they are computed anew."""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import orjson
import structlog

from handoff.cache import FIGURES_TTL_S, Cache
from handoff.encoding import to_json

log = structlog.get_logger(__name__)

FRESH_S: Final = 300  # then they are stale: the next reader gets them, and they are computed anew
_ANEW_MAX: Final = 2  # computed anew at a time in this process; other readers of stale figures cause nothing

Compute = Callable[[], Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Figure:
    """What was computed, in its JSON form, and when."""

    value: dict[str, Any]
    computed_at: datetime
    is_stale: bool


class Figures:
    """Figures by key, in the cache. Each is computed by one task at a time in this process, however many ask for it."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._running: dict[str, asyncio.Task[Figure]] = {}

    async def get(self, key: str, compute: Compute) -> Figure:
        """Return the figures of this key. Raises what `compute` raises, unless there are stale ones to return.

        When stale ones are returned, they are computed anew afterwards. If that fails, the next reader gets the stale ones
        too, until the cache forgets them.
        """
        kept = await self._cache.get(key)
        if kept is None:
            return await asyncio.shield(self._begin(key, compute, None))
        computed_at = datetime.fromtimestamp(kept["at"], UTC)
        is_stale = abs((datetime.now(UTC) - computed_at).total_seconds()) > FRESH_S  # either way: clocks may be set back
        if is_stale and len(self._running) < _ANEW_MAX:
            self._begin(key, compute, Context())  # not part of this call
        return Figure(kept["value"], computed_at, is_stale)

    async def settled(self) -> None:
        """Wait until nothing is being computed."""
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def close(self) -> None:
        """End what is being computed."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _begin(self, key: str, compute: Compute, context: Context | None) -> asyncio.Task[Figure]:
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(self._compute(key, compute), context=context)
            task.add_done_callback(lambda ended: self._ended(key, ended))
        return task

    async def _compute(self, key: str, compute: Compute) -> Figure:
        at = datetime.now(UTC)
        value = orjson.loads(to_json(await compute()))  # in the form in which the cache returns it
        await self._cache.put(key, {"at": at.timestamp(), "value": value}, FIGURES_TTL_S)
        return Figure(value, at, is_stale=False)

    def _ended(self, key: str, task: asyncio.Task[Figure]) -> None:
        del self._running[key]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("figures.not_computed", error=type(error).__name__)
