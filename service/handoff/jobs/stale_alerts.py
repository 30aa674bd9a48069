"""Ends alerts that nobody has reported for so long that their end must have been missed."""

from handoff.context import App
from handoff.jobs import watchdog
from handoff.store import alerts
from handoff.store.connect import connection


async def run(app: App) -> None:
    """End stale alerts. The watchdog's own alert is left alone: it ends when the heartbeat returns."""
    async with connection(app.pool) as conn:
        await alerts.forget(conn, watchdog.FINGERPRINT)
