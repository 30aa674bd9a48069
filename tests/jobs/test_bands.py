"""What the detector expected is shown for the most important series, by names of ours, and only while it is known."""

import asyncpg
import pytest

from handoff.context import App
from handoff.jobs import bands, detect, measure, rollup
from handoff.settings import Settings
from handoff.store import rollups
from handoff.telemetry import metrics
from tests.agents import Agent
from tests.jobs.test_detect import FORGET, past

LABELLED = "SELECT id FROM series WHERE name = 'handoffs.offered' AND labels <> '{}'"
NEWEST = """
    SELECT coalesce(sum(value), 0) FROM series_point JOIN series ON id = series_id
     WHERE name = 'handoffs.offered' AND labels = '{}'
       AND bucket = (SELECT at - interval '1 minute' FROM analytics_progress WHERE stage = 'judged')
"""
INCIDENT = """
    WITH opened AS (
        INSERT INTO incident (severity, component, summary, causes, anomalies, opened_at, last_at)
        VALUES ('warning', 'route', 'Unusual.', '[]', 1, now(), now()) RETURNING id)
    INSERT INTO anomaly (series_id, bucket, version, severity, shadow, value, expected, lower, upper, strength, confidence,
                         spoke, sentence, incident_id)
    SELECT $1, now(), 99, 'warning', false, 1, 2, 3, 4, 1, 0.5, '{}', 'Unusual.', id FROM opened
"""


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"series_warm_up_s": 3_600.0})


def shown() -> set[str]:
    return {name for (name,) in metrics.SERIES_EXPECTED._cells}


async def test_the_newest_minute_is_shown_with_its_band_and_without_a_callers_word(
    app: App, agent: Agent, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollup, "SOURCES", (rollups.from_events,))  # not also what this process does meanwhile
    await past(agent, db, 300)
    await rollup.run(app)
    await detect.run(app)
    await measure.run(app)

    assert metrics.SERIES_VALUE.value("handoffs.offered") == await db.fetchval(NEWEST)
    band = [it.value("handoffs.offered") for it in (metrics.SERIES_LOWER, metrics.SERIES_EXPECTED, metrics.SERIES_UPPER)]
    assert band == sorted(band)
    assert band[0] < band[2]
    ids = {row["id"] for row in await db.fetch(LABELLED)}
    assert {it for it in shown() if "#" in it} <= {f"handoffs.offered #{number}" for number in ids}
    assert not any(who in name for name in shown() for who in ("ada", "alice", "bob"))
    assert metrics.SERIES_LEFT_OUT.value() == 0
    everything = shown()

    assert len(ids) > 1
    await db.execute(INCIDENT, max(ids))
    of_all = {name for name in everything if "#" not in name}
    monkeypatch.setattr(metrics.SERIES_NAME, "chosen_max", len(of_all) + 1)
    await db.execute(FORGET)
    await detect.run(app)
    await measure.run(app)
    assert shown() == of_all | {f"handoffs.offered #{max(ids)}"}
    assert metrics.SERIES_LEFT_OUT.value() >= len(everything) - len(of_all) - 1 > 0
    metrics.SERIES_UPPER.set(1, "handoffs.offered #999999")  # the label takes no other name
    assert metrics.SERIES_UPPER.value("other") == 1

    before = shown()
    await detect.run(app)  # a run that has nothing to judge changes nothing
    await measure.run(app)
    assert shown() == before
    assert {metrics.SERIES_LEFT_OUT, *bands._FIGURES.values()} <= set(
        metrics.LEADERS
    )  # which end when another process leads
