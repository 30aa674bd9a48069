"""Records the figures of each day, tells which of them rise or fall, and forecasts those that capacity depends on."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from functools import partial
from time import monotonic
from typing import Any, Final, Literal

import structlog

from handoff.context import App
from handoff.errors import Invalid
from handoff.store import days, saturation
from handoff.store.connect import Connection, snapshot, transact
from handoff.store.saturation import SERVICE_CPUS

log = structlog.get_logger(__name__)

INTERVAL_S: Final = 3_600.0
DAYS_MAX: Final = 28  # counted from rows on the first run
TREND_DAYS: Final = 56
FORECAST_DAYS: Final = 180
_AGAIN: Final = 3  # days whose handoffs may still end
_RUN_S: Final = 30.0  # after which a run counts no other day; the next run goes on
DAYS_MIN: Final = 14  # for a trend or a forecast
_SHOWN: Final = (7, 30, 90)  # days ahead

Better = Literal["rise", "fall"] | None  # what a figure should do; None if neither is better
TRENDS: Final[dict[str, Better]] = {
    "sessions": None,
    "handoffs": None,
    "entries": None,
    "content_bytes": None,
    "storage_bytes": None,
    "success_ratio": "rise",
    "to_accept_s": "fall",
    "to_complete_s": "fall",
    "lapsed_ratio": "fall",
    "large_entries": "fall",
}
CAPACITY: Final = ("storage_bytes", "content_bytes", "entries", "sessions", "handoffs", "calls", SERVICE_CPUS)
OF_OPERATIONS: Final[dict[str, Better]] = {
    "calls": None,
    "failed_ratio": "fall",
    "duration_p95_s": "fall",
}

Days = Mapping[str, Mapping[date, float]]


async def run(app: App) -> None:
    """Record the days that are over, and conclude anew."""
    today = datetime.now(UTC).date()
    until = monotonic() + _RUN_S
    async with snapshot(app.pool) as conn:
        missing = await days.missing(conn, today, _AGAIN, DAYS_MAX)
    for day in reversed(missing):
        if monotonic() > until:
            break
        await _record(app, day)
    async with snapshot(app.pool) as conn:
        since = today - timedelta(days=days.KEPT_DAYS)
        known = await days.read(conn, since) | await days.of_service(conn, since, today)
        operations = await days.of_operations(conn, today - timedelta(days=TREND_DAYS), today)
        limits = {"storage_bytes": app.settings.storage_bytes_max or None, SERVICE_CPUS: await saturation.limit(conn)}
    trends, capacity = await asyncio.to_thread(conclude, known, operations, today, limits)

    async def store(conn: Connection) -> None:
        await days.conclude(conn, "trends", trends)
        await days.conclude(conn, "capacity", capacity)

    await transact(app.pool, store)


async def _record(app: App, day: date) -> None:
    try:
        async with snapshot(app.pool) as conn:
            figures = await days.count(conn, day, app.settings.statement_timeout_s)
    except Invalid as error:  # too much for one statement: the day has no figures
        log.warning("trends.day_not_counted", day=day.isoformat(), code=error.code)
        return
    await transact(app.pool, partial(days.record, day=day, figures=figures))


def conclude(
    known: Days, operations: Mapping[str, Days], today: date, limits: Mapping[str, float | None]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The trends of all figures and of those of each operation, and the forecasts, from their values by day."""
    trends = {
        "since": today - timedelta(days=TREND_DAYS),
        "until": today,
        "trends": [_trend(name, known.get(name, {}), today, better) for name, better in TRENDS.items()],
        "operations": [
            {"operation": operation} | _trend(name, of_it[name], today, better)
            for operation, of_it in operations.items()
            for name, better in OF_OPERATIONS.items()
            if name in of_it
        ],
    }
    capacity = {"forecasts": [_forecast(name, known.get(name, {}), today, limits.get(name)) for name in CAPACITY]}
    return trends, capacity


def _trend(name: str, values: Mapping[date, float], today: date, better: Better) -> dict[str, Any]:
    first = today - timedelta(days=TREND_DAYS)
    series = [values.get(first + timedelta(days=number)) for number in range(TREND_DAYS)]
    known = sum(value is not None for value in series)
    if known < DAYS_MIN:
        return {"figure": name, "verdict": "unknown", "days": known, "days_needed": DAYS_MIN}
    import numpy as np  # with enough days only: a service on one machine does the jobs too

    from handoff.analytics.trend import trend_of

    found = trend_of(np.array(series, np.float64), season=7)  # None becomes NaN
    if found is None:
        raise ValueError(f"{known} days are too few for a trend")
    verdict: str = found.direction
    if better is not None and verdict != "steady":
        verdict = "improving" if (verdict == "rising") == (better == "rise") else "degrading"
    return {
        "figure": name,
        "verdict": verdict,
        "p_value": float(f"{found.p_value:.2g}"),
        "tau": round(found.tau, 3),
        "per_day": float(f"{found.slope:.4g}"),
        "change": round(found.change, 4),
        "days": found.points,
    }


def _forecast(name: str, values: Mapping[date, float], today: date, limit: float | None) -> dict[str, Any]:
    latest: list[float] = []
    day = today - timedelta(days=1)
    while (value := values.get(day)) is not None:  # without a gap, up to yesterday
        latest.append(value)
        day -= timedelta(days=1)
    shown: dict[str, Any] = {"figure": name, "latest": latest[0] if latest else None, "limit": limit, "days": len(latest)}
    if len(latest) < DAYS_MIN:
        return shown | {"days_needed": DAYS_MIN}
    import numpy as np

    from handoff.analytics.forecast import CONFIDENCE, forecast

    found = forecast(np.array(latest[::-1]), FORECAST_DAYS)
    if found is None:
        raise ValueError(f"{len(latest)} days are too few for a forecast")
    paths = {"low": found.low, "expected": found.expected, "high": found.high}
    shown |= {
        "ahead": [{"in_days": ahead, **{path: _rounded(x[ahead - 1]) for path, x in paths.items()}} for ahead in _SHOWN],
        "confidence": CONFIDENCE,
        "coverage_measured": round(found.coverage, 3),
        "measured_on": found.tried,
    }
    if limit is not None:
        when = {"earliest": found.high, "expected": found.expected, "latest": found.low}
        shown["limit_reached"] = {name: _reaches(x, limit, today) for name, x in when.items()}
    return shown


def _rounded(value: float) -> float:
    """Not below zero; to a tenth from 1,000 on, and to a thousandth below, as CPUs need it."""
    return round(max(0.0, float(value)), 1 if value >= 1_000 else 3)


def _reaches(path: Any, limit: float, today: date) -> date | None:
    """The first day on which a path is at the limit; None if that is not within FORECAST_DAYS."""
    for number, value in enumerate(path):
        if value >= limit:
            return today + timedelta(days=number)
    return None
