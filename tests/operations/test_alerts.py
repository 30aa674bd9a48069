"""Notifications are stored once, and acknowledged when they are durable; an alert that is no longer reported is resolved."""

import asyncio
import json
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from handoff.app import open_app
from handoff.context import App
from handoff.jobs import stale_alerts
from handoff.operations.alerts import VALUES_MAX
from handoff.operations.notification import CUT, NAMES_MAX, VALUE_CHARS_MAX
from handoff.settings import Settings
from handoff.store.migrate import migrate
from handoff.telemetry import metrics
from tests.agents import Agent
from tests.processes import PATIENCE_S
from tests.server.test_auth import bearer, line
from tests.server.test_http import edge
from tests.test_faults import hanging, own_postgres

NOW = datetime.now(UTC).replace(microsecond=0)


def alert(status: str = "firing", number: int = 1, **more: Any) -> dict[str, Any]:
    ends = "0001-01-01T00:00:00Z" if status == "firing" else (NOW - timedelta(seconds=5)).isoformat()
    return {
        "status": status,
        "fingerprint": f"{number:016x}",
        "startsAt": (NOW - timedelta(minutes=number)).isoformat(),
        "endsAt": ends,
        "labels": {"alertname": f"Alert{number}", "severity": "critical", "component": "database"},
        "annotations": {"summary": "It is down", "description": f"number {number}"},
        "generatorURL": "http://prometheus/graph",
        **more,
    }


def notification(*alerts: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"version": "4", "status": "firing", "receiver": "page", "groupKey": "{}", "alerts": list(alerts), **more}


def heartbeat(age_s: float = 0) -> dict[str, Any]:
    return notification(alert(annotations={"evaluated_at": f"{datetime.now(UTC).timestamp() - age_s:.0f}"}))


@pytest.fixture
async def http(app: App) -> AsyncGenerator[httpx2.AsyncClient]:
    async with edge(app) as client:
        yield client


async def kept(db: asyncpg.Connection) -> list[tuple[Any, ...]]:
    rows = await db.fetch("SELECT alertname, status, notifications FROM reporting.alert ORDER BY alertname")
    return [tuple(row) for row in rows]


async def test_a_notification_is_stored_and_firing_alerts_are_listed_first(
    http: httpx2.AsyncClient, agent: Agent, db: asyncpg.Connection
) -> None:
    before = metrics.ALERT_NOTIFICATIONS.value("firing")
    answer = await http.post("/alerts", json=notification(alert(number=1), alert("resolved", 2), alert(number=3)))
    assert (answer.status_code, answer.json()) == (200, {"stored": 3})
    assert metrics.ALERT_NOTIFICATIONS.value("firing") == before + 2

    page = await agent.read("handoff://alerts?limit=2")
    assert [row["alertname"] for row in page["alerts"]] == ["Alert1", "Alert3"]
    assert page["alerts"][0]["summary"] == "It is down"
    assert "ends_at" not in page["alerts"][0]
    rest = await agent.read(f"handoff://alerts?limit=2&cursor={page['next_cursor']}")
    assert [(row["alertname"], row["status"]) for row in rest["alerts"]] == [("Alert2", "resolved")]
    assert "next_cursor" not in rest
    only = await agent.read("handoff://alerts?status=resolved")
    assert [row["alertname"] for row in only["alerts"]] == ["Alert2"]


async def test_a_repeated_notification_changes_nothing_and_a_resolved_alert_stays_resolved(
    http: httpx2.AsyncClient, db: asyncpg.Connection, logged: list[dict[str, Any]]
) -> None:
    for _ in range(2):
        await http.post("/alerts", json=notification(alert()))
    assert await kept(db) == [("Alert1", "firing", 2)]
    await http.post("/alerts", json=notification(alert("resolved")))
    await http.post("/alerts", json=notification(alert()))  # a late one
    assert await kept(db) == [("Alert1", "resolved", 4)]
    assert [event["status"] for event in logged if event["event"] == "alert.received"] == ["firing", "resolved"]


async def test_a_notification_that_cannot_be_committed_is_not_counted_logged_or_acknowledged(
    http: httpx2.AsyncClient, db: asyncpg.Connection, logged: list[dict[str, Any]]
) -> None:
    await db.execute("CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$")
    await db.execute(
        "CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON alert INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION no()"
    )
    before = metrics.ALERT_NOTIFICATIONS.value("firing")
    assert (await http.post("/alerts", json=notification(alert()))).status_code == 500
    assert metrics.ALERT_NOTIFICATIONS.value("firing") == before
    assert [event["event"] for event in logged if event["event"].startswith("alert.")] == ["alert.failed"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"no json", "not JSON"),
        ([], "list of alerts"),
        ({"version": "4"}, "list of alerts"),
        ({"version": "4", "alerts": "many"}, "list of alerts"),
        (notification(alert(fingerprint="")), "fingerprint"),
    ],
)
async def test_what_is_no_notification_is_refused_and_changes_nothing(
    http: httpx2.AsyncClient, db: asyncpg.Connection, body: Any, says: str
) -> None:
    answer = await (http.post("/alerts", content=body) if isinstance(body, bytes) else http.post("/alerts", json=body))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_notification")
    assert says in answer.json()["error"]["message"]
    assert await kept(db) == []


async def test_what_is_too_long_is_cut_and_marked_and_reported_once(
    http: httpx2.AsyncClient, db: asyncpg.Connection, logged: list[dict[str, Any]]
) -> None:
    many = {f"n{number}": "x" for number in range(200)} | {"summary": "It is down", "description": "d" * 20_000}
    for _ in range(2):
        answer = await http.post("/alerts", json=notification(alert(annotations=many), alert(number=2)))
        assert (answer.status_code, answer.json()) == (200, {"stored": 2})
    annotations = json.loads(await db.fetchval("SELECT annotations FROM alert WHERE labels ->> 'alertname' = 'Alert1'"))
    assert (len(annotations), annotations["summary"]) == (NAMES_MAX, "It is down")
    assert annotations["description"] == "d" * (VALUE_CHARS_MAX - len(CUT)) + CUT
    said = [event for event in logged if event["event"] == "alert.adjusted"]
    assert [(it["alertname"], it["adjusted"]) for it in said] == [("Alert1", ["names_left_out", "text_cut"])]


async def test_an_alert_whose_clock_is_ahead_is_one_row_that_starts_when_it_was_heard_of(
    http: httpx2.AsyncClient, db: asyncpg.Connection, agent: Agent
) -> None:
    ahead = (datetime.now(UTC) + timedelta(seconds=70)).isoformat()
    await http.post("/alerts", json=notification(alert(startsAt=ahead), alert(number=2)))
    shown = (await agent.read("handoff://alerts"))["alerts"][0]
    assert shown["alertname"] == "Alert1"
    assert shown["starts_at"] <= datetime.now(UTC).isoformat()
    await http.post("/alerts", json=notification(alert("resolved", startsAt=ahead, endsAt=ahead), alert(number=2)))
    assert await kept(db) == [("Alert1", "resolved", 2), ("Alert2", "firing", 2)]
    assert await db.fetchval(
        "SELECT starts_at <= ends_at AND ends_at <= now() FROM reporting.alert WHERE status = 'resolved'"
    )


_ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(alphabet=st.characters()) | st.just("x" * 9_000),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=300), inner, max_size=3),
    max_leaves=8,
)
_TIMES = st.datetimes().map(lambda at: at.isoformat() + "Z") | st.just("0001-01-01T00:00:00+14:00") | _ODD
_ALERTS = st.fixed_dictionaries(
    {"fingerprint": st.text(alphabet=st.characters(), min_size=1, max_size=80)},
    optional={
        "status": st.sampled_from(("firing", "resolved")) | _ODD,
        "startsAt": _TIMES,
        "endsAt": _TIMES,
        "labels": st.dictionaries(st.text(alphabet=st.characters(), max_size=300), _ODD, max_size=80) | _ODD,
        "annotations": st.dictionaries(st.text(max_size=5), _ODD, max_size=5) | _ODD,
    },
)


async def test_every_alert_that_has_a_fingerprint_is_stored_whatever_else_it_says(
    app: App, http: httpx2.AsyncClient, db: asyncpg.Connection
) -> None:
    sent = list[list[dict[str, Any]]]()

    @hypothesis.settings(max_examples=100, deadline=None, database=None)
    @given(st.lists(_ALERTS, min_size=1, max_size=4))
    def collect(alerts: list[dict[str, Any]]) -> None:
        sent.append(alerts)

    collect()
    for alerts in sent:
        await db.execute("TRUNCATE alert")
        answer = await http.post("/alerts", content=json.dumps({"version": "4", "alerts": alerts}).encode())
        assert answer.status_code == 200, (alerts, answer.text)
        fingerprints = {it["fingerprint"] for it in alerts}
        assert await db.fetchval("SELECT count(DISTINCT fingerprint) FROM alert") == len(fingerprints), alerts
        future = "SELECT count(*) FROM reporting.alert WHERE starts_at > now() OR ends_at > now() OR ends_at < starts_at"
        assert await db.fetchval(future) == 0, alerts


@pytest.mark.parametrize("path", ["/alerts", "/watchdog"])
async def test_a_notification_that_would_cost_too_much_to_parse_is_refused_before_it_is_parsed(
    http: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr("handoff.operations.notification.json", None)
    many = await http.post(path, content=b"[" + b"0," * VALUES_MAX + b"0]")
    deep = await http.post(path, content=b"[" * 600 + b"]" * 600)

    assert (many.status_code, many.json()["error"]["code"]) == (413, "too_many_values")
    assert "max_alerts" in many.json()["error"]["message"]
    assert (deep.status_code, deep.json()["error"]["code"]) == (400, "invalid_notification")


async def test_notifications_need_a_token_with_the_scope_alerts(
    settings: Settings, tmp_path: Path, db: asyncpg.Connection
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(line("alertmanager", "alerts") + line("root", "admin"))
    async with open_app(settings.model_copy(update={"tokens_file": tokens})) as app, edge(app) as http:
        for path in ("/alerts", "/watchdog"):
            for headers, status in (({}, 401), (bearer("root"), 403), (bearer("alertmanager"), 200)):
                body = notification(alert()) if path == "/alerts" else heartbeat()
                assert (await http.post(path, json=body, headers=headers)).status_code == status
        assert (await http.get("/alerts", headers=bearer("alertmanager"))).status_code == 405
    assert await kept(db) == [("Alert1", "firing", 1)]


async def test_a_notification_while_the_database_hangs_is_refused_and_stored_when_it_is_back(settings: Settings) -> None:
    with own_postgres() as (url, folder):
        update = {"database_url": SecretStr(url), "statement_timeout_s": 3, "connect_timeout_s": 3}
        own = settings.model_copy(update=update)
        await migrate(own)
        async with open_app(own) as app, edge(app) as http:
            assert (await http.post("/alerts", json=notification(alert(number=2)))).status_code == 200
            with hanging(folder):
                answer = await http.post("/alerts", json=notification(alert()))
                assert (answer.status_code, answer.json()["error"]["retryable"]) == (503, True)
            db = await asyncpg.connect(url)
            try:
                async with asyncio.timeout(PATIENCE_S):
                    while len(await kept(db)) < 2:
                        await asyncio.sleep(0.1)
                await asyncio.sleep(1.5)  # so that it would be stored a second time, if it were kept
                assert await kept(db) == [("Alert1", "firing", 1), ("Alert2", "firing", 1)]
                # Alertmanager was told that Alert1 was not stored, so it will not say that it is resolved.
                await db.execute("UPDATE alert SET updated_at = now() - interval '6 minutes'")
                await stale_alerts.run(app)
                ended = (
                    "SELECT alertname, ends_at = greatest(updated_at, starts_at) FROM reporting.alert WHERE ends_at < now()"
                )
                assert await db.fetch(ended) == [("Alert1", True)]
                await http.post("/alerts", json=notification(alert()))  # it fires after all
                assert await kept(db) == [("Alert1", "firing", 2), ("Alert2", "firing", 1)]
                await db.execute("UPDATE alert SET updated_at = now() - interval '6 minutes'")
                await stale_alerts.run(app)
                assert await kept(db) == [("Alert1", "firing", 2), ("Alert2", "firing", 1)], "it is confirmed now"
            finally:
                await db.close()


async def test_an_alert_not_reported_for_two_hours_is_resolved_and_only_the_newest_resolved_ones_are_kept(
    settings: Settings, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handoff.store.alerts.KEPT", 2)
    async with open_app(settings.model_copy(update={"jobs": False})) as app, edge(app) as http:
        await http.post("/alerts", json=notification(*(alert("resolved", number) for number in (1, 2, 3)), alert(number=4)))
        assert [name for name, _, _ in await kept(db)] == ["Alert1", "Alert2", "Alert4"], (
            "only the oldest resolved alert was deleted"
        )
        for minutes, status in ((119, "firing"), (121, "resolved")):
            await db.execute(f"UPDATE alert SET updated_at = now() - interval '{minutes} minutes'")
            await stale_alerts.run(app)
            assert await db.fetchval("SELECT status FROM reporting.alert WHERE alertname = 'Alert4'") == status
        await http.post("/alerts", json=notification(alert(number=4)))  # it was only silenced in Alertmanager
        assert (
            await db.fetchval("SELECT status FROM reporting.alert WHERE alertname = 'Alert4' AND ends_at IS NULL")
            == "firing"
        )
