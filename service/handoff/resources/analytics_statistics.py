"""Statistics of sessions, handoffs and context, per hour, day, week or month, and for the whole range."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

from handoff.cache import figures_key
from handoff.context import Call
from handoff.encoding import from_cursor, that_fit, to_cursor
from handoff.errors import Invalid
from handoff.resources.analytics_contract import RANGES, AnalyticsQuery, Type
from handoff.store import statistics
from handoff.store.connect import Connection, address, snapshot
from handoff.store.statistics import Asked, Statistics

BUCKETS_MAX: Final = 400  # per range: a fortnight of hours, a year of days
_PART_OF: Final = {"agent": "agents", "policy": "policies", "route": "routes", "type": "types", "operation": "operations"}

Read = Callable[[Connection, Asked, float], Awaitable[Statistics]]


async def read_statistics(read: Read, name: str, call: Call, query: AnalyticsQuery, agent: str | None) -> dict[str, Any]:
    """A page of the statistics that `read` reads. Raises Invalid if the range is empty or has too many buckets."""
    _asked(query, agent)  # which raises Invalid
    question = {
        "since": query.since.isoformat() if query.since else "",
        "until": query.until.isoformat() if query.until else "",
        "granularity": query.granularity,
        "policy": query.policy or "",
        "operation": query.operation or "",
    }
    app = call.app
    key = figures_key(address(app.settings), name, agent, question)

    async def compute() -> dict[str, Any]:
        asked = _asked(query, agent)  # until now, which is later than at first if the figures have become stale
        async with snapshot(app.pool) as conn:
            found = await read(conn, asked, app.settings.statement_timeout_s)
        return _answer(asked, found, alone=agent is not None)

    async with app.admission.reads.turn(call.caller.agent or ""):
        found = await app.figures.get(key, compute)
    return _page(found.value, query, app.settings.page_bytes_max) | {
        "computed_at": found.computed_at,
        "stale": found.is_stale,
    }


def _asked(query: AnalyticsQuery, agent: str | None) -> Asked:
    """The range, from the beginning of a bucket. Raises Invalid if it is empty or has more than BUCKETS_MAX buckets."""
    now = datetime.now(UTC)
    until = min(query.until or now, now)
    granularity = query.granularity
    try:
        since = statistics.beginning(query.since or until - RANGES[granularity], granularity)
    except OverflowError:
        since = until
    if since >= until:
        raise Invalid(
            "invalid_arguments",
            "The range from since to until is empty, or in the future.",
            "Repeat the call with a since that is before until and before now, both with a time zone.",
        )
    asked = Asked(since, until, granularity, query.policy, agent, query.operation)
    if until - since > BUCKETS_MAX * timedelta(days=31) or len(statistics.buckets_of(asked)) > BUCKETS_MAX:
        raise Invalid(
            "range_too_large",
            f"This range has more than {BUCKETS_MAX} {granularity}s.",
            "Repeat the call with a shorter range or a coarser granularity: hour, day, week or month.",
        )
    return asked


def _answer(asked: Asked, found: Statistics, *, alone: bool) -> dict[str, Any]:
    buckets: list[dict[str, Any]] = []
    for start in statistics.buckets_of(asked):
        bucket = {"start": start, **found.buckets.get(start, found.none)}
        if statistics.after(start, asked.granularity) > asked.until:
            bucket["partial"] = True
        buckets.append(bucket)
    parts: dict[str, Any] = {}
    for part, rows in found.parts.items():
        if not (alone and part == "agent"):
            parts[_PART_OF[part]] = rows
            if left_out := found.left_out.get(part):
                parts[f"{_PART_OF[part]}_left_out"] = left_out
    return {
        "since": asked.since,
        "until": asked.until,
        "granularity": asked.granularity,
        "total": found.all,
        **parts,
        "buckets": buckets,
    }


def _page(value: dict[str, Any], query: AnalyticsQuery, bytes_max: int) -> dict[str, Any]:
    """A page of the buckets, oldest first. What is said of the whole range is on the first page only."""
    position = from_cursor(query.cursor, datetime)[0] if query.cursor is not None else None
    rest = [it for it in value["buckets"] if position is None or datetime.fromisoformat(it["start"]) > position]
    whole = value if position is None else {name: value[name] for name in ("since", "until", "granularity")}
    shown = that_fit(rest[: query.limit], bytes_max)
    page = {**whole, "buckets": shown}
    if len(shown) < len(rest):
        page["next_cursor"] = to_cursor(datetime.fromisoformat(shown[-1]["start"]))
    return page


_PARAMETERS: Final = frozenset({"since", "until", "granularity", "agent", "policy", "cursor", "limit"})
SESSIONS: Final = Type(partial(read_statistics, statistics.sessions, "sessions"), _PARAMETERS)
HANDOFFS: Final = Type(partial(read_statistics, statistics.handoffs, "handoffs"), _PARAMETERS)
CONTEXT: Final = Type(partial(read_statistics, statistics.context, "context"), _PARAMETERS)
