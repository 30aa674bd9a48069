"""Measures how late the event loop runs its timers."""

import asyncio
from collections import deque
from time import monotonic
from typing import Final

from handoff.telemetry import metrics

WINDOW_S: Final = 60.0
_TICK_S: Final = 0.25


class EventLoopLag:
    """The event loop's lag, measured while `run` is running. Any thread may read it."""

    def __init__(self) -> None:
        self._lags: deque[tuple[float, float]] = deque()
        self._ticked_at = monotonic()

    async def run(self) -> None:
        """Set one timer after another, and record how late each fires, until cancelled."""
        while True:
            due = monotonic() + _TICK_S
            await asyncio.sleep(_TICK_S)
            now = self._ticked_at = monotonic()
            lag = max(0.0, now - due)
            metrics.EVENT_LOOP_LAG.record(lag)
            self._lags.append((now, lag))
            while self._lags[0][0] < now - WINDOW_S:
                self._lags.popleft()

    @property
    def worst_ms(self) -> float:
        """The longest lag within WINDOW_S, in milliseconds."""
        return 1_000 * max((lag for _, lag in self._lags), default=0.0)

    @property
    def overdue_ms(self) -> float:
        """How late the pending timer is now, in milliseconds: large while the loop is stuck, negative before it is due."""
        return 1_000 * (monotonic() - self._ticked_at - _TICK_S)
