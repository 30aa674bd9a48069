"""Which figures rise or fall, and what is forecast: what the worker concluded last."""

from functools import partial
from typing import Any, Final

from handoff.context import Call
from handoff.resources.analytics_contract import AnalyticsQuery, Type
from handoff.store import days
from handoff.store.connect import snapshot

_NOTHING: Final[dict[days.Conclusion, str]] = {"trends": "trends", "capacity": "forecasts"}


async def _read(type_: days.Conclusion, call: Call, _: AnalyticsQuery, _agent: str | None) -> dict[str, Any]:
    async with snapshot(call.app.pool) as conn:
        found = await days.concluded(conn, type_)
    if found is None:
        return {_NOTHING[type_]: [], "computed_at": None}
    return {**found["document"], "computed_at": found["computed_at"]}


TRENDS: Final = Type(partial(_read, "trends"), frozenset(), scope="admin")
CAPACITY: Final = Type(partial(_read, "capacity"), frozenset(), scope="admin")
