"""What to change, with the evidence, the expected effect, and what was measured after: `handoff://analytics/recommendations`."""

from typing import Any, Final

from handoff.context import Call
from handoff.encoding import from_cursor, that_fit, to_cursor
from handoff.model import SEQUENCE_MAX
from handoff.resources.analytics_contract import AnalyticsQuery, Type
from handoff.store import evidence, recommendations
from handoff.store.connect import snapshot

_START: Final = (1, SEQUENCE_MAX)


async def _read(call: Call, query: AnalyticsQuery, agent: str | None) -> dict[str, Any]:
    """A page of the recommendations that concern the agent, or of all: open ones first, each the newest first."""
    is_open, before = from_cursor(query.cursor, range(2), int) if query.cursor is not None else _START
    async with snapshot(call.app.pool) as conn:
        rows = await recommendations.page(conn, before=(bool(is_open), before), agent=agent, limit=query.limit + 1)
        watched = await conn.fetchval(evidence.HAS_STATEMENTS)
    shown = that_fit([recommendations.view(row) for row in rows[: query.limit]], call.app.settings.page_bytes_max)
    answer: dict[str, Any] = {"recommendations": shown}
    if agent is None and not watched:
        answer["not_measured"] = {"slow_query": "The database lacks the extension pg_stat_statements."}
    if len(rows) > len(shown):
        answer["next_cursor"] = to_cursor(int(shown[-1]["state"] == "open"), shown[-1]["id"])
    return answer


RECOMMENDATIONS: Final = Type(_read, frozenset({"agent", "cursor", "limit"}))
