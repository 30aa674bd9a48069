"""The alerts that operators were notified of, and whether alerting itself works."""

from datetime import UTC, datetime
from typing import Any, Final, Literal

from handoff.context import Call
from handoff.encoding import from_cursor, that_fit, to_cursor
from handoff.resources.contract import CursorArg, LimitArg, Query, Resource
from handoff.store import alerts
from handoff.store.connect import snapshot

_START: Final = (True, datetime(9999, 1, 1, tzinfo=UTC), "")
_FIELDS: Final = (
    "alertname", "status", "severity", "component", "summary", "description", "starts_at", "ends_at", "runbook_url",
    "dashboard_url", "notifications", "updated_at",
)  # fmt: skip


class AlertsQuery(Query):
    """Filters by status, and pages."""

    status: Literal["firing", "resolved"] | None = None
    cursor: CursorArg = None
    limit: LimitArg = 20


async def list_alerts(call: Call, _: dict[str, str], query: AlertsQuery) -> dict[str, Any]:
    """A page of alerts, firing ones first, then newest first; and what is known of the Watchdog's heartbeat."""
    before = _START
    if query.cursor is not None:
        fires, starts_at, fingerprint = from_cursor(query.cursor, range(2), datetime, str)
        before = (bool(fires), starts_at, fingerprint)
    async with snapshot(call.app.pool) as conn:
        rows, last = await alerts.page(conn, before=before, status=query.status, limit=query.limit)
        heartbeat = await alerts.watchdog(conn)
    found = [{name: row[name] for name in _FIELDS if row[name] is not None} for row in rows]
    shown = that_fit(found, call.app.settings.page_bytes_max)
    if len(shown) < len(rows):
        last = rows[len(shown) - 1]
    page: dict[str, Any] = {
        "alerts": shown,
        "watchdog": {
            "expected": call.app.settings.watchdog_timeout_s > 0,
            "age_s": heartbeat["age_s"],
            "silent_since": heartbeat["silent_since"],
        },
    }
    if last is not None:
        page["next_cursor"] = to_cursor(int(last["fires"]), last["starts_at"], last["fingerprint"])
    return page


ALERTS = Resource(
    "handoff://alerts",
    "alerts",
    "Alerts that operators were notified of, firing ones first, and the age of alerting's own heartbeat.",
    AlertsQuery,
    list_alerts,
)
