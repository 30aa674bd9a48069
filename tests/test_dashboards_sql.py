"""Each SQL query of the pages is answered by the migrated database, also when its tables are filled."""

import json
from time import time

import asyncpg

from tests.stack.panels import dashboards, filled_sql, questions, variables

CAPACITY = {
    "forecasts": [
        {
            "figure": "storage_bytes",
            "latest": 10.0,
            "limit": 100.0,
            "days": 20,
            "ahead": [{"in_days": days, "low": 9.0, "expected": 10.0 + days, "high": 90.0} for days in (7, 30, 90)],
            "confidence": 0.9,
            "coverage_measured": 0.93,
            "measured_on": 12,
            "limit_reached": {"earliest": "2026-12-24", "expected": None, "latest": None},
        },
        {"figure": "sessions", "latest": None, "limit": None, "days": 0, "days_needed": 14},
    ]
}
PAST = """
    INSERT INTO series (name, labels, kind, absence, begins_at, last_at)
    SELECT name, '{}', 'level', 'gap', now() - interval '10 weeks', now()
      FROM unnest(ARRAY['handoffs.offered', 'promql.queue', 'promql.lag']) AS name;
    INSERT INTO series_point SELECT date_trunc('minute', now()), id, 1 FROM series WHERE name <> 'promql.lag';
    INSERT INTO anomaly (series_id, bucket, version, severity, shadow, muted, value, expected, lower, upper, strength,
                         confidence, spoke, sentence)
    SELECT id, date_trunc('minute', now()) - interval '2 minutes', 1, 'warning', name LIKE 'promql.%', name = 'promql.lag',
           1, 2, 3, 4, 1.5, 0.5, '{}', name || ' is 1.'
      FROM series ORDER BY id;
    INSERT INTO incident (severity, component, summary, causes, anomalies, opened_at, last_at, closed_at)
    VALUES ('warning', 'route', 'Long ago.', '[]', 1, now() - interval '9 days', now() - interval '9 days',
            now() - interval '1 day'),
           ('warning', 'route', 'Lately.', '[]', 1, now() - interval '1 hour', now() - interval '1 hour', now()),
           ('critical', 'tool', 'Now.', '[]', 1, now(), now(), NULL);
"""


async def answer(db: asyncpg.Connection, page: str, panel: str, until_s: float = 60) -> list[dict[str, object]]:
    """What a panel shows of a range that ends in `until_s` seconds."""
    (asked,) = [it for it in questions(dashboards()[page]) if it.panel == panel]
    return [dict(row) for row in await db.fetch(filled_sql(asked.text, {}, time() + until_s))]


async def test_every_statement_on_a_page_is_answered(db: asyncpg.Connection) -> None:
    asked = 0
    for page in dashboards().values():
        chosen = {name: ["x"] for name in variables(page)}
        for it in questions(page):
            if it.source == "postgres":
                asked += 1
                await db.fetch(filled_sql(it.target["rawSql"], chosen, time()))
    assert asked > 20


async def test_the_page_analytics_shows_what_was_found_and_what_is_forecast(db: asyncpg.Connection) -> None:
    page = "handoff-analytics"
    await db.execute(PAST)
    await db.execute("INSERT INTO conclusion VALUES ('capacity', now(), $1::text::jsonb)", json.dumps(CAPACITY))

    assert [it["summary"] for it in await answer(db, page, "Incidents")] == ["Now.", "Lately."]
    assert [it["summary"] for it in await answer(db, page, "Incidents", until_s=-600)] == ["Now."], "closed after the range"
    told = {it["sentence"]: it["told"] for it in await answer(db, page, "Anomalies")}
    assert told == {"handoffs.offered is 1.": "yes", "promql.queue is 1.": "still learning", "promql.lag is 1.": "muted"}
    read = [
        (it["expression"], it["series"], it["newest minute"] is None)
        for it in await answer(db, page, "Series from Prometheus")
    ]
    assert read == [("promql.lag", 1, True), ("promql.queue", 1, False)]
    ahead = await answer(db, page, "Capacity")
    assert [(it["figure"], it["days ahead"], it["expected"]) for it in ahead] == [
        ("storage_bytes", days, 10.0 + days) for days in (7, 30, 90)
    ]
    assert (ahead[0]["coverage"], ahead[0]["limit"], ahead[0]["earliest at limit"]) == (0.93, 100.0, "2026-12-24")
