"""`handoff report`: one page with charts of what happened, what was unusual, and what to change."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from asyncpg import Record

from handoff import __version__
from handoff.cli import amounts
from handoff.cli.advice import FIGURES, advice, route_name
from handoff.cli.page_file import written
from handoff.cli.start import fail, read_settings, run_loop
from handoff.encoding import counted
from handoff.errors import Invalid
from handoff.settings import Settings
from handoff.store import alerts, anomalies, days, statistics, storage
from handoff.store.connect import connect_alone, prepare_connection
from handoff.store.statistics import Asked, Granularity, Statistics

UNUSUAL_MAX: Final = 100  # rows
_ROUTES_SHOWN: Final = 20
_AGENTS_SHOWN: Final = 20
_OPEN: Final = ("offered", "accepted", "blocked")
_UNSUCCESSFUL: Final = ("rejected", "cancelled", "expired")


@dataclass(frozen=True, slots=True)
class Material:
    """What a report is made of: the statistics of its range, the totals of the range before, and what was concluded."""

    asked: Asked
    sessions: Statistics
    handoffs: Statistics
    context: Statistics
    before: tuple[dict[str, Any], dict[str, Any], dict[str, Any]]
    trends: list[dict[str, Any]]
    forecasts: list[dict[str, Any]]
    stored: Mapping[date, float]
    saving: dict[str, Any] | None
    alerts: list[Record]
    anomalies: list[Record]


def report_command(arguments: Namespace) -> int:
    """Write the report; return 2 if something is missing or wrong. Exits if the database does not answer or refuses."""
    if find_spec("matplotlib") is None or find_spec("jinja2") is None:
        return fail(
            "The report needs the extra `report`: pip install 'handoff-observatory[report]', or "
            "uvx 'handoff-observatory[report]' report."
        )
    try:
        length = amounts.since(arguments.since)
    except ValueError as error:
        return fail(str(error))
    settings = read_settings(arguments)
    if settings.database_url is None:
        return fail("HANDOFF_DATABASE_URL is not set. `handoff run` prints its own as it starts.")
    try:
        material = run_loop(_gather(settings, length))
    except Invalid as error:
        return fail(f"{error.message} Choose a shorter time with --since.")
    if status := written(arguments.out, page(material, length)):
        return status
    sessions, handoffs = material.sessions.all["sessions"], material.handoffs.all["handoffs"]
    print(f"{arguments.out}: {counted(sessions, 'session')}, {counted(handoffs, 'handoff')}.")
    return 0


async def _gather(settings: Settings, length: timedelta) -> Material:
    now = datetime.now(UTC)
    granularity: Granularity = "hour" if length <= timedelta(days=2) else "day" if length <= timedelta(days=92) else "week"
    since = statistics.beginning(now - length, granularity)
    asked = Asked(since, now, granularity)
    earlier = Asked(since - (now - since), since, granularity)
    timeout_s = settings.statement_timeout_s
    conn = await connect_alone(settings)
    try:
        await prepare_connection(conn)
        async with conn.transaction(isolation="repeatable_read", readonly=True):
            read = (statistics.sessions, statistics.handoffs, statistics.context)
            sessions, handoffs, context = [await it(conn, asked, timeout_s) for it in read]
            before = [(await it(conn, earlier, timeout_s)).all for it in read]
            trends, capacity = await days.concluded(conn, "trends"), await days.concluded(conn, "capacity")
            known = await days.read(conn, now.date() - timedelta(days=90))
            saving = (await storage.read(conn, settings.storage_bytes_max)).advice
            fired = await alerts.since(conn, since, UNUSUAL_MAX)
            found = await anomalies.since(conn, since, UNUSUAL_MAX)
    finally:
        await conn.close()
    return Material(
        asked, sessions, handoffs, context, (before[0], before[1], before[2]),
        trends["document"]["trends"] if trends is not None else [],
        capacity["document"]["forecasts"] if capacity is not None else [],
        known.get("storage_bytes", {}), saving, fired, found,
    )  # fmt: skip


def page(material: Material, length: timedelta) -> str:
    """The report as HTML. Everything in it that is not a chart is escaped; charts contain no names."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    asked, today = material.asked, material.asked.until.date()
    storage_forecast = next((it for it in material.forecasts if it["figure"] == "storage_bytes"), None)
    routes = material.handoffs.parts.get("route", [])
    unusual = _unusual(material)
    return environment.get_template("report.html.j2").render(
        period=f"{asked.since:%Y-%m-%d %H:%M} to {asked.until:%Y-%m-%d %H:%M}",
        length=amounts.length(length),
        cards=_cards(material),
        advice=advice(
            material.handoffs.all, routes, material.context.all, material.trends, storage_forecast, material.saving, today
        ),
        unusual=unusual,
        unusual_left_out=sum(rows[0]["total"] for rows in (material.alerts, material.anomalies) if rows) - len(unusual),
        charts=_charts(material, storage_forecast),
        tables=_tables(material, routes),
        version=__version__,
        made_at=f"{asked.until:%Y-%m-%d %H:%M} UTC",
    )


def _cards(material: Material) -> list[dict[str, str]]:
    sessions, handoffs, context = material.sessions.all, material.handoffs.all, material.context.all
    old_sessions, old_handoffs, old_context = material.before
    return [
        _card("Sessions", f"{sessions['sessions']:,}", f"{old_sessions['sessions']:,}"),
        _card("Handoffs", f"{handoffs['handoffs']:,}", f"{old_handoffs['handoffs']:,}"),
        _card("Completed", amounts.share(handoffs["success_ratio"]), amounts.share(old_handoffs["success_ratio"])),
        _card("Median wait", _median(handoffs["to_accept_s"]), _median(old_handoffs["to_accept_s"])),
        _card("Entries", f"{context['entries']:,}", f"{old_context['entries']:,}"),
        _card("Content", amounts.size(context["content_bytes"]), amounts.size(old_context["content_bytes"])),
    ]


def _card(name: str, value: str, before: str) -> dict[str, str]:
    return {"name": name, "value": value, "before": f"{before} before"}


def _unusual(material: Material) -> list[dict[str, str]]:
    """The newest alerts and anomalies, newest first."""
    found = [
        (
            row["starts_at"],
            amounts.seconds((row["ends_at"] - row["starts_at"]).total_seconds()) if row["ends_at"] else "it still fires",
            row["severity"] or "",
            row["summary"] or row["alertname"] or "",
        )
        for row in material.alerts
    ]
    found += [(row["at"], "", row["severity"], _named(row)) for row in material.anomalies]
    found.sort(key=lambda it: it[0], reverse=True)
    return [
        {"at": f"{at:%Y-%m-%d %H:%M}", "lasted": lasted, "severity": severity, "what": what}
        for at, lasted, severity, what in found[:UNUSUAL_MAX]
    ]


def _named(row: Record) -> str:
    labels = ", ".join(f"{name} {value}" for name, value in row["labels"].items())
    return f"{row['sentence']} ({labels})" if labels else row["sentence"]


def _charts(material: Material, forecast: Mapping[str, Any] | None) -> list[dict[str, str]]:
    from handoff.cli import charts
    from handoff.cli.svg import BAD, FIRST, GOOD, OPEN, SECOND

    starts = statistics.buckets_of(material.asked)
    per = f"per {material.asked.granularity}"

    def values(found: Statistics, *path: str) -> list[float | None]:
        return [_at(found.buckets.get(start, found.none), *path) for start in starts]

    def states(*names: str) -> list[float | None]:
        columns = [values(material.handoffs, "by_state", name) for name in names]
        return [sum(value or 0 for value in row) for row in zip(*columns, strict=True)]

    shown: list[dict[str, str]] = []
    if material.sessions.buckets:
        svg = charts.bars(starts, [charts.Values("sessions", FIRST, values(material.sessions, "sessions"))], per)
        shown.append({"name": "Sessions created", "note": per, "svg": svg})
    if material.handoffs.buckets:
        ended = [
            charts.Values("completed", GOOD, states("completed")),
            charts.Values("rejected, cancelled or expired", BAD, states(*_UNSUCCESSFUL)),
            charts.Values("open", OPEN, states(*_OPEN)),
        ]
        svg = charts.bars(starts, ended, per)
        shown.append({"name": "Handoffs, by how they ended", "note": f"{per} in which they were offered", "svg": svg})
    if any(value is not None for value in values(material.handoffs, "to_accept_s", "p50")):
        waited = [
            charts.Values("median", FIRST, values(material.handoffs, "to_accept_s", "p50")),
            charts.Values("95th percentile", SECOND, values(material.handoffs, "to_accept_s", "p95")),
        ]
        svg = charts.durations(starts, waited)
        shown.append({"name": "Time from offer to acceptance", "note": f"{per}, logarithmic", "svg": svg})
    if material.context.buckets:
        written = [None if it is None else it / 1e6 for it in values(material.context, "content_bytes")]
        svg = charts.bars(starts, [charts.Values("content", FIRST, written)], f"MB {per}")
        shown.append({"name": "Content written", "note": f"MB {per}", "svg": svg})
    if forecast is not None and "ahead" in forecast and material.stored:
        shown.append(_storage_chart(material, forecast))
    return shown


def _storage_chart(material: Material, forecast: Mapping[str, Any]) -> dict[str, str]:
    from handoff.cli import charts

    stored = sorted(material.stored.items())
    last = _midnight(stored[-1][0])
    ahead = [
        (last + timedelta(days=it["in_days"]), it["low"] / 1e9, it["expected"] / 1e9, it["high"] / 1e9)
        for it in forecast["ahead"]
    ]
    known = ([_midnight(day) for day, _ in stored], [value / 1e9 for _, value in stored])
    limit = forecast["limit"] / 1e9 if forecast["limit"] else None
    svg = charts.fan(known, ahead, limit, "GB")
    note = f"GB; {amounts.share(forecast['coverage_measured'])} of earlier values were in such an interval"
    return {"name": "Size of the tables, and its forecast", "note": note, "svg": svg}


def _tables(material: Material, routes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    tables: list[dict[str, Any]] = []
    if routes:
        rows = [
            (
                route_name(it), f"{it['handoffs']:,}", amounts.share(it["success_ratio"]), _median(it["to_accept_s"]),
                _median(it["to_complete_s"]), f"{it['lapsed']:,}",
            )
            for it in routes[:_ROUTES_SHOWN]
        ]  # fmt: skip
        heads = ("From, to", "Handoffs", "Completed", "Accepted within", "Completed within", "Lapsed")
        name = "Routes" if len(routes) <= _ROUTES_SHOWN else f"Routes: the {_ROUTES_SHOWN} with the most handoffs"
        tables.append({"name": name, "heads": heads, "rows": rows})
    agents = material.context.parts.get("agent", [])
    if agents:
        rows = [
            (it["agent"], f"{it['entries']:,}", amounts.size(it["content_bytes"]), f"{it['large']:,}")
            for it in agents[:_AGENTS_SHOWN]
        ]
        name = "Who wrote" if len(agents) <= _AGENTS_SHOWN else f"Who wrote: the {_AGENTS_SHOWN} with the most entries"
        tables.append({"name": name, "heads": ("Agent", "Entries", "Content", "Above 100 kB"), "rows": rows})
    known = [it for it in material.trends if it["verdict"] != "unknown"]
    if known:
        rows = [
            (
                FIGURES[it["figure"]],
                it["verdict"],
                amounts.change(it["change"]),
                amounts.probability(it["p_value"]),
                it["days"],
            )
            for it in known
        ]
        heads = ("Figure per day", "Trend", "Change", "By chance", "Days")
        tables.append({"name": "Trends", "heads": heads, "rows": rows})
    return tables


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _at(figures: Mapping[str, Any], *path: str) -> float | None:
    value: Any = figures
    for name in path:
        value = value.get(name) if value is not None else None
    return value


def _median(percentiles: Mapping[str, float] | None) -> str:
    return amounts.NONE if percentiles is None else amounts.seconds(percentiles["p50"])
