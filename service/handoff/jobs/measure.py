"""Measures what the database holds (sessions, open handoffs, inboxes, what the detector expects), and sets the gauges."""

import asyncio
from pathlib import Path
from time import time
from typing import get_args

from handoff.context import App
from handoff.jobs import bands
from handoff.model import HandoffState, RequestType, SessionStatus
from handoff.store import state, webhooks
from handoff.store.connect import connection
from handoff.telemetry import metrics
from handoff.webhooks import WebhooksFileError, read_endpoints


async def run(app: App) -> None:
    """Count sessions, open handoffs and inboxes in the database, and set their gauges."""
    async with connection(app.pool) as conn:
        rows = await state.totals(conn, get_args(SessionStatus))
    found = {(row["figure"], row["a"], row["b"]): row["value"] for row in rows}
    for status in get_args(SessionStatus):
        metrics.SESSIONS.set(found.get(("sessions", status, ""), 0), status)
    for held in (name for name in get_args(HandoffState) if name in ("offered", "accepted", "blocked")):
        for kind in get_args(RequestType):
            metrics.HANDOFFS_OPEN.set(found.get(("open", held, kind), 0), held, kind)
    for target in ("agent", "capability"):
        metrics.INBOX_DEPTH.set(found.get(("depth", target, ""), 0), target)
        metrics.OLDEST_OFFER.set(found.get(("oldest", target, ""), 0), target)
        metrics.DEEPEST_INBOX.set(found.get(("deepest", target, ""), 0), target)
    if app.settings.webhooks_file is not None:
        await _measure_webhooks(app, app.settings.webhooks_file)
    metrics.PING_PONG.set(found.get(("ping_pong", "", ""), 0))
    await bands.show(app)
    metrics.MEASURED_AT.set(time())


async def _measure_webhooks(app: App, file: Path) -> None:
    try:
        names = [it.name for it in await asyncio.to_thread(read_endpoints, file)]
    except WebhooksFileError:  # fails the job `webhooks`, which says so
        return
    async with connection(app.pool) as conn:
        found = await webhooks.totals(conn, names)
    if found is not None:
        metrics.WEBHOOKS_PENDING.set(found["pending"])
        metrics.WEBHOOKS_DEAD.set(found["dead"])
        metrics.WEBHOOK_OLDEST.set(found["oldest_s"])
