"""The admin tool that judges the past of series anew: what would have alerted, and at which sensitivity."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from heapq import nlargest
from typing import Annotated, Any, Final

from asyncpg import Record
from pydantic import AfterValidator, Field

from handoff.context import Call
from handoff.encoding import that_fit
from handoff.errors import Invalid, NotFound, Unavailable
from handoff.jobs.judging import RELEARNT, Told, judge_anew
from handoff.store import series
from handoff.store.connect import connection
from handoff.tools.contract import AgentArg, Arguments, Tool, no_nul, result_with

SERIES_MAX: Final = 20
DAYS_MAX: Final = 14
SENSITIVITIES: Final = (0.5, 1.0, 2.0)  # at which alerts are counted
LIMIT_S: Final = 50.0
_ALERTS_MAX: Final = 200
_WEEK: Final = timedelta(weeks=1)
_NAME_CHARS_MAX: Final = 1_000


class Backtest(Arguments):
    """Judge the past of watched series anew: what would have alerted, when and why. Changes nothing.

    series is a name of handoff://analytics/series, or with labels: "calls.failed_ratio (operation get_inbox)".
    """

    agent: AgentArg = None
    series: Annotated[str, Field(min_length=1, max_length=_NAME_CHARS_MAX), AfterValidator(no_nul)]
    days: Annotated[int, Field(ge=1, le=DAYS_MAX)] = 7
    sensitivity: Annotated[float, Field(ge=0.25, le=4)] = 1.0


async def backtest(call: Call, args: Backtest) -> dict[str, Any]:
    """Replay the minutes of the series, after two days from which they are learnt; return what would have alerted.

    Raises NotFound when there is no such series, Invalid when it has no past, Unavailable when another backtest is running
    or this one takes too long.
    """
    async with _alone(call):
        async with connection(call.app.pool) as conn:
            found = [row for row in await series.named(conn, args.series.partition(" (")[0]) if _is(row, args.series)]
            now: datetime = (await conn.fetchval("SELECT now()")).replace(second=0, microsecond=0)
        if not found:
            raise NotFound(
                "series_not_found",
                f"No series {args.series!r} is watched.",
                "Read handoff://analytics/series, which lists the names.",
            )
        rows = found[:SERIES_MAX]
        begins_at = min(row["begins_at"] for row in rows)
        since = max(now - timedelta(days=args.days), begins_at)
        if since >= now:
            raise Invalid(
                "no_past",
                f"The series {args.series!r} has no whole minute yet.",
                "Repeat the call in a few minutes.",
            )
        learnt_from, most_sensitive = max(since - RELEARNT, begins_at), max(*SENSITIVITIES, args.sensitivity)
        found_since = await judge_anew(call.app, rows, learnt_from, now, 1 / most_sensitive)
    told = [it for it in found_since if it.at >= since]
    alerts = [it for it in told if it.strength * args.sensitivity >= 1]
    strongest = nlargest(_ALERTS_MAX, alerts, key=lambda it: it.strength)
    counted = Counter(it.row["id"] for it in alerts)
    bytes_max = call.app.settings.page_bytes_max // 2
    answer: dict[str, Any] = {
        "since": since,
        "until": now,
        "series": that_fit([_series(row, counted[row["id"]]) for row in rows], bytes_max),
        "alerts": sorted(that_fit([_alert(it, args.sensitivity) for it in strongest], bytes_max), key=lambda it: it["at"]),
        "alerts_by_sensitivity": {f"{it:g}": sum(a.strength * it >= 1 for a in told) for it in SENSITIVITIES},
        "alerts_per_series_week": round(len(alerts) / len(rows) / ((now - since) / _WEEK), 3),
    }
    for name, count in (("series", len(found)), ("alerts", len(alerts))):
        if left_out := count - len(answer[name]):
            answer[f"{name}_left_out"] = left_out
    return answer


@asynccontextmanager
async def _alone(call: Call) -> AsyncGenerator[None]:
    """One backtest at a time in a process, and for LIMIT_S at most: it takes a processor. Raises Unavailable."""
    if call.app.admission.backtest.locked():
        raise Unavailable("overloaded", "Another backtest is running, and one at a time may.", "Call again in a minute.")
    async with call.app.admission.backtest:
        try:
            async with asyncio.timeout(LIMIT_S):
                yield
        except TimeoutError as error:
            raise Unavailable(
                "overloaded",
                f"The backtest took more than {LIMIT_S:g} s and was ended.",
                "Repeat the call with fewer days, or with the labels of one series.",
            ) from error


def _is(row: Record, wanted: str) -> bool:
    return wanted in (row["name"], series.shown(row))


def _series(row: Record, alerts: int) -> dict[str, Any]:
    return {"series": row["name"], "labels": row["labels"], "kind": row["kind"], "alerts": alerts}


def _alert(it: Told, sensitivity: float) -> dict[str, Any]:
    return {
        "at": it.at,
        "series": it.row["name"],
        "labels": it.row["labels"],
        "strength": round(it.strength * sensitivity, 2),
        "confidence": round(it.confidence, 2),
        "sentence": it.sentence,
    }


BACKTEST = Tool("backtest", Backtest, backtest, result_with("alerts", "array"), "admin", read_only=True)
