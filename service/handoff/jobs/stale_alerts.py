"""Resolves alerts that have not been reported for so long that their resolution must have been missed."""

from handoff.context import App
from handoff.jobs import watchdog
from handoff.store import alerts
from handoff.store.connect import connection


async def run(app: App) -> None:
    """Resolve stale alerts, except the watchdog's own, which is resolved when the heartbeat returns, if one is expected."""
    async with connection(app.pool) as conn:
        await alerts.forget(conn, watchdog.FINGERPRINT if app.heartbeat.is_expected else None)
