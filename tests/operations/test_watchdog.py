"""The dead man's switch: a heartbeat that stops is reported once on every channel, and so is its return."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest
from aiohttp import web
from mcp import Client

from handoff.app import open_app
from handoff.context import App
from handoff.jobs import stale_alerts, watchdog
from handoff.operations.heartbeat import Heartbeat
from handoff.server.protocol import build_server
from handoff.settings import Settings
from handoff.telemetry import metrics
from tests.agents import Agent, until
from tests.operations.test_alerts import alert, heartbeat, kept, notification
from tests.server.test_http import edge


@pytest.fixture
async def http(app: App) -> AsyncGenerator[httpx2.AsyncClient]:
    async with edge(app) as client:
        yield client


async def test_a_heartbeat_records_the_time_of_its_evaluation_which_never_goes_back(
    http: httpx2.AsyncClient, db: asyncpg.Connection
) -> None:
    beats = [heartbeat(age_s) for age_s in (100, 20, 60)]  # the last one arrives late
    for beat in beats:
        assert (await http.post("/watchdog", json=beat)).status_code == 200
    newest = float(beats[1]["alerts"][0]["annotations"]["evaluated_at"])
    assert await db.fetchval("SELECT extract(epoch FROM evaluated_at)::float8 FROM watchdog") == newest
    assert (await http.post("/watchdog", json=heartbeat(-70))).status_code == 200, "a clock that is a little ahead"
    assert await db.fetchval("SELECT evaluated_at <= now() FROM watchdog")
    assert (await http.post("/watchdog", json=heartbeat(-3_600))).status_code == 400
    assert (await http.post("/watchdog", json=notification(alert()))).status_code == 400
    assert await kept(db) == [], "heartbeats are not part of the alert history"


class Receiver:
    """A webhook receiver outside the service."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []
        self.status = 200

    async def take(self, request: web.Request) -> web.Response:
        if self.status == 200:
            self.heard.append(await request.json())
        return web.Response(status=self.status)


@pytest.fixture
async def webhook(tmp_path: Path, settings: Settings) -> AsyncGenerator[tuple[Receiver, Settings]]:
    receiver = Receiver()
    application = web.Application()
    application.router.add_post("/hook", receiver.take)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    file = tmp_path / "webhook"
    file.write_text(f"http://127.0.0.1:{runner.addresses[0][1]}/hook\n")
    update = {"watchdog_timeout_s": 0.4, "watchdog_webhook_file": file, "jobs": False, "heartbeat_interval_s": 5.0}
    try:
        yield receiver, settings.model_copy(update=update)
    finally:
        await runner.cleanup()


async def test_silence_and_its_end_are_each_reported_once_on_every_channel(
    webhook: tuple[Receiver, Settings], db: asyncpg.Connection, logged: list[dict[str, Any]]
) -> None:
    receiver, settings = webhook
    async with open_app(settings) as app, Client(build_server(app)) as client:
        app.heartbeat.timeout_s = 1_000  # no machine is so slow
        await watchdog.run(app)
        assert receiver.heard == [], "the service has not run for as long as the heartbeat may be missing"
        app.heartbeat.timeout_s = settings.watchdog_timeout_s
        await asyncio.sleep(0.5)
        receiver.status = 500
        await watchdog.run(app)
        assert metrics.WATCHDOG_AGE.value() > 0.4
        assert await kept(db) == [("WatchdogSilent", "firing", 1)]
        receiver.status = 200
        for again in (
            app,
            app,
            replace(app, heartbeat=Heartbeat(settings)),
        ):  # the last one, as in a process that takes over
            await watchdog.run(again)
        assert [(message["status"], message["alertname"]) for message in receiver.heard] == [("firing", "WatchdogSilent")]
        assert "Alerting is down" in receiver.heard[0]["text"]
        page = await Agent(client).read("handoff://alerts")
        assert page["watchdog"]["expected"] is True
        assert page["watchdog"]["silent_since"]

        async with edge(app) as http:
            await http.post("/watchdog", json=heartbeat())
        await db.execute("UPDATE watchdog SET evaluated_at = now()")
        app.heartbeat.timeout_s = 1_000
        for _ in range(2):
            await watchdog.run(app)
    assert [message["status"] for message in receiver.heard] == ["firing", "resolved"]
    assert await kept(db) == [("WatchdogSilent", "resolved", 2)]
    said = [event["event"] for event in logged if event["event"].startswith("watchdog.")]
    assert said == ["watchdog.silent", "watchdog.not_told", "watchdog.told", "watchdog.heard", "watchdog.told"]


async def test_the_alert_of_a_silent_watchdog_is_forgotten_only_where_no_heartbeat_is_expected(
    webhook: tuple[Receiver, Settings], db: asyncpg.Connection
) -> None:
    async with open_app(webhook[1]) as app:
        await asyncio.sleep(0.5)
        await watchdog.run(app)
        assert await kept(db) == [("WatchdogSilent", "firing", 1)]
        await db.execute("UPDATE alert SET updated_at = now() - interval '121 minutes'")
        await stale_alerts.run(app)
        assert await kept(db) == [("WatchdogSilent", "firing", 1)]
    async with open_app(webhook[1].model_copy(update={"watchdog_timeout_s": 0.0})) as app:
        await stale_alerts.run(app)
    assert await kept(db) == [("WatchdogSilent", "resolved", 1)]


async def test_alerting_is_degraded_by_silence_but_healthy_where_no_heartbeat_is_expected(settings: Settings) -> None:
    for timeout_s, status in ((0.0, "healthy"), (0.2, "degraded")):
        update = {"watchdog_timeout_s": timeout_s, "health_interval_s": 0.1}
        async with open_app(settings.model_copy(update=update)) as app:

            def alerting(app: App = app) -> Any:
                return app.health.report()["components"].get("alerting", {}).get("status")

            await until(lambda status=status, alerting=alerting: alerting() == status)


async def test_time_in_which_no_heartbeat_could_be_received_is_not_silence(
    settings: Settings, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000.0
    monkeypatch.setattr("handoff.operations.heartbeat.monotonic", lambda: now)
    heartbeat = Heartbeat(settings.model_copy(update={"heartbeat_interval_s": 10.0}))
    for _ in range(10):
        now += 10
        await heartbeat.read(db)
    assert (await heartbeat.read(db)).age_s == 100

    received = "UPDATE watchdog SET evaluated_at = now() - make_interval(secs => $1)"
    await db.execute(received, 7)
    assert 7 <= (await heartbeat.read(db)).age_s < 12
    now += 500  # the database was down
    await db.execute(received, 600)
    assert (await heartbeat.read(db)).age_s == 0
    now += 10
    assert (await heartbeat.read(db)).age_s == 10


async def test_time_asleep_is_not_silence(
    settings: Settings, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    awake_s, wall = 1_000.0, 5_000.0
    monkeypatch.setattr("handoff.operations.heartbeat.monotonic", lambda: awake_s)
    monkeypatch.setattr("handoff.operations.heartbeat.time", lambda: wall)
    heartbeat = Heartbeat(settings.model_copy(update={"heartbeat_interval_s": 10.0}))
    await db.execute("UPDATE watchdog SET evaluated_at = now() - interval '8 hours'")
    for _ in range(100):
        awake_s, wall = awake_s + 10, wall + 10
        await heartbeat.read(db)
    assert (await heartbeat.read(db)).age_s == 1_000

    awake_s, wall = awake_s + 1, wall + 8 * 3_600  # the machine slept, and the monotonic clock stood still
    assert (await heartbeat.read(db)).age_s == 0
    awake_s, wall = awake_s + 10, wall + 10
    assert (await heartbeat.read(db)).age_s == 10
    wall -= 3_600  # the clock was set back
    assert (await heartbeat.read(db)).age_s == 0
