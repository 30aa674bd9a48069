"""The history of series, per hour, day, week or month, newest first: what minutes were added up to."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from asyncpg import Record

from handoff.context import Call
from handoff.encoding import from_cursor, that_fit, to_cursor
from handoff.resources.analytics_contract import RANGES, AnalyticsQuery, Type, range_of
from handoff.store import history, promql, statistics
from handoff.store.connect import snapshot

_ID: Final = range(1 << 31)
_KEPT_MAX: Final = timedelta(days=4_000)  # more than any policy keeps


async def _read(call: Call, query: AnalyticsQuery, agent: str | None) -> dict[str, Any]:
    """A page of the names of series or, with `series`, of the periods of those of this name. Whole periods only."""
    if query.series is None:
        return await _names(call, query, agent)
    per = query.granularity
    since, until = range_of(query, RANGES[per])
    now = datetime.now(UTC) - history.OVER
    since = statistics.beginning(max(since, now - _KEPT_MAX), per)
    until = min(until, statistics.beginning(now, per))
    after = from_cursor(query.cursor, datetime, _ID) if query.cursor is not None else (until, 0)
    async with call.app.admission.reads.turn(call.caller.agent or ""), snapshot(call.app.pool) as conn:
        rows = await history.read(
            conn,
            query.series,
            since,
            until,
            per,
            agent=agent,
            operation=query.operation,
            after=(after[0], after[1]),
            limit=query.limit + 1,
        )
    shown = that_fit([_period(row) for row in rows[: query.limit]], call.app.settings.page_bytes_max)
    page: dict[str, Any] = {"series": query.series, "since": since, "until": until, "granularity": per, "periods": shown}
    if len(shown) < len(rows):
        last = rows[len(shown) - 1]
        page["next_cursor"] = to_cursor(last["start"], last["id"])
    return page


async def _names(call: Call, query: AnalyticsQuery, agent: str | None) -> dict[str, Any]:
    """Names by their order; the first page also names the expressions of the configuration that have no series."""
    after = from_cursor(query.cursor, str, str) if query.cursor is not None else ("", "")
    async with snapshot(call.app.pool) as conn:
        rows = await history.names(conn, agent, (after[0], after[1]), query.limit + 1)
        empty = await promql.empty(conn) if agent is None and query.cursor is None else []
    shown = [{"name": row["name"], "kind": row["kind"], "series": row["series"]} for row in rows[: query.limit]]
    page: dict[str, Any] = {"names": shown, "total": rows[0]["total"] if rows else 0}
    if empty:
        page["not_measured"] = {f"promql.{row['name']}": _empty(row["named_at"]) for row in empty}
    if len(shown) < len(rows):
        page["next_cursor"] = to_cursor(shown[-1]["name"], shown[-1]["kind"])
    return page


def _empty(since: datetime) -> str:
    return f"Prometheus answers its expression, but has never had a value for it since {since:%Y-%m-%d %H:%M} UTC."


def _period(row: Record) -> dict[str, Any]:
    """What a series was in a period: of a ratio its share, of what is counted the sum, of all else the mean per minute."""
    total = row["total"]
    match row["kind"]:
        case "ratio":
            value = total / row["of"] if row["of"] else None
        case "count" | "counter":
            value = total
        case _:
            value = total / row["minutes"]
    return {
        "start": row["start"],
        "labels": row["labels"],
        "kind": row["kind"],
        "value": value,
        "lowest": row["lowest"],
        "highest": row["highest"],
        "last": row["last"],
        "minutes": row["minutes"],
    }


SERIES: Final = Type(_read, frozenset({"series", "since", "until", "granularity", "agent", "operation", "cursor", "limit"}))
