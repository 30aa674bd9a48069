"""What the detector found, newest first."""

from datetime import datetime, timedelta
from typing import Any, Final

from handoff.context import Call
from handoff.encoding import from_cursor, that_fit, to_cursor
from handoff.resources.analytics_contract import AnalyticsQuery, Type, range_of
from handoff.store import anomalies, series
from handoff.store.connect import snapshot

_RANGE: Final = timedelta(days=7)  # without `since`
_ID: Final = range(1 << 31)
_VERSION: Final = range(1 << 15)


async def _read(call: Call, query: AnalyticsQuery, agent: str | None) -> dict[str, Any]:
    """A page of anomalies. `judged_to` says up to when the detector has looked: what came later is not in them."""
    since, until = range_of(query, _RANGE)
    after = None
    if query.cursor is not None:
        at, series_id, version = from_cursor(query.cursor, datetime, _ID, _VERSION)
        after = (at, series_id, version)
    async with snapshot(call.app.pool) as conn:
        judged_to = await series.progress(conn, "judged")
        rows = await anomalies.newest(conn, since, until, agent, after, query.limit + 1)
    views = [
        {name: row[name] for name in anomalies.SHOWN}
        | {"series": row["name"], "shadow": row["shadow"], "muted": row["muted"]}
        for row in rows[: query.limit]
    ]
    shown = that_fit(views, call.app.settings.page_bytes_max)
    page: dict[str, Any] = {"since": since, "until": until, "judged_to": judged_to, "anomalies": shown}
    if len(shown) < len(rows):
        last = rows[len(shown) - 1]
        page["next_cursor"] = to_cursor(last["at"], last["series_id"], last["version"])
    return page


ANOMALIES: Final = Type(_read, frozenset({"since", "until", "agent", "cursor", "limit"}))
