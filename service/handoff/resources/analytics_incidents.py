"""Incidents: what was unusual together, with its likely causes, newest first."""

from datetime import datetime, timedelta
from typing import Any, Final

from handoff.context import Call
from handoff.encoding import from_cursor, that_fit, to_cursor
from handoff.resources.analytics_contract import AnalyticsQuery, Type, range_of
from handoff.store import incidents, series
from handoff.store.connect import snapshot
from handoff.views import incident_view

_RANGE: Final = timedelta(days=30)  # without `since`
_ID: Final = range(1 << 63)


async def _read(call: Call, query: AnalyticsQuery, _: str | None) -> dict[str, Any]:
    """A page of incidents by when they opened. `judged_to` says up to when the detector has looked."""
    since, until = range_of(query, _RANGE)
    after = None
    if query.cursor is not None:
        opened_at, incident_id = from_cursor(query.cursor, datetime, _ID)
        after = (opened_at, incident_id)
    async with snapshot(call.app.pool) as conn:
        judged_to = await series.progress(conn, "judged")
        rows = await incidents.page(conn, since, until, after, query.limit + 1)
    shown = that_fit([incident_view(row) for row in rows[: query.limit]], call.app.settings.page_bytes_max)
    page: dict[str, Any] = {"since": since, "until": until, "judged_to": judged_to, "incidents": shown}
    if len(shown) < len(rows):
        last = rows[len(shown) - 1]
        page["next_cursor"] = to_cursor(last["opened_at"], last["id"])
    return page


INCIDENTS: Final = Type(_read, frozenset({"since", "until", "cursor", "limit"}), scope="admin")
