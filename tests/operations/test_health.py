"""Health: a report never waits, changes are stored, and a stuck event loop is noticed."""

import threading
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import anyio
import asyncpg
import httpx2
import pytest
from mcp import Client
from pydantic import SecretStr

from handoff.app import Kind, open_app
from handoff.context import App
from handoff.jobs.runner import jobs_beside
from handoff.operations.checks import CHECKS, FAILURES_MIN, memory_limit
from handoff.operations.health import CHECK_TIMEOUT_S, Health
from handoff.operations.readiness import Readiness
from handoff.operations.recent import LONG_WAIT_S, Figures, cpu_limit
from handoff.server.protocol import build_server
from handoff.settings import Settings
from handoff.store.connect import connection
from handoff.telemetry import metrics
from handoff.telemetry.instruments import quantile
from handoff.telemetry.shipper import Shipment
from tests.agents import Agent, until
from tests.processes import PATIENCE_S, free_port, serving
from tests.proxy import proxied
from tests.test_faults import hanging, own_postgres


async def checked(health: Health) -> dict[str, Any]:
    """A report of a new check, after any check in progress has ended."""
    await until(lambda: health._checked_at and (health._checking is None or health._checking.done()))
    health._checked_at = 0.0
    await health.check()
    await until(lambda: health._checked_at and (health._storing is None or health._storing.done()))
    return health.report()


async def test_a_healthy_report_has_figures_and_their_thresholds(app: App, agent: Agent) -> None:
    await until(lambda: app.health.report()["components"].get("worker"))
    report = await agent.read("handoff://health")

    assert set(report["components"]) == set(CHECKS)
    statuses = {name: component["status"] for name, component in report["components"].items()}
    ours = {name: status for name, status in statuses.items() if name not in ("machine", "disk")}  # others use those too
    assert set(ours.values()) == {"healthy"}, ours
    database, memory = report["components"]["database"], report["components"]["memory"]
    assert 0 < database["figure"] < database["degraded_from"] == 500
    assert 0 < memory["figure"] < memory["degraded_from"] == 80 < memory["unhealthy_from"] == 95
    assert "todo" not in memory
    assert report["checked_s_ago"] < 2


async def test_a_change_of_status_is_stored_logged_counted_and_in_the_history(
    app: App, agent: Agent, db: asyncpg.Connection, logged: list[dict[str, Any]]
) -> None:
    before = metrics.HEALTH_CHANGES.value("telemetry")
    state = Shipment(waiting=5, sent=1, dropped=0, away_s=100.0)
    app.health._watched.shipments = lambda: {"logs": state}
    report = await checked(app.health)
    assert (report["status"], report["components"]["telemetry"]["status"]) == ("degraded", "degraded")
    assert report["components"]["telemetry"]["todo"]
    app.health._watched.shipments = lambda: {"logs": Shipment(0, 6, 0, 0.0)}
    assert (await checked(app.health))["components"]["telemetry"]["status"] == "healthy"

    rows = await db.fetch(
        "SELECT component, was, status, figure, threshold FROM health_event WHERE component = 'telemetry' ORDER BY id"
    )
    assert [tuple(row) for row in rows] == [
        ("telemetry", "healthy", "degraded", 100, 60),
        ("telemetry", "degraded", "healthy", 0, 60),
    ]
    changes = [it for it in logged if it["event"] == "health.changed" and it["component"] == "telemetry"]
    said = [(line["level"], line["component"], line["status"]) for line in changes]
    assert said == [("warning", "telemetry", "degraded"), ("info", "telemetry", "healthy")]
    assert metrics.HEALTH_CHANGES.value("telemetry") == before + 2
    assert metrics.COMPONENT_STATUS.value("telemetry") == 0
    history = (await agent.read("handoff://health"))["history"]
    assert [change["status"] for change in history if change["component"] == "telemetry"] == ["healthy", "degraded"]
    assert (await agent.read("handoff://health?history=1"))["history"] == history[:1]


async def test_dropped_records_degrade_telemetry_until_the_next_check(app: App) -> None:
    app.health._watched.shipments = lambda: {"logs": Shipment(0, 0, 7, 0.0)}

    assert "7 records dropped" in (await checked(app.health))["components"]["telemetry"]["detail"]
    assert (await checked(app.health))["components"]["telemetry"]["status"] == "healthy"


async def test_a_database_that_hangs_delays_no_report_and_changes_are_stored_when_it_is_back() -> None:
    ops = free_port()
    # The database's own timeouts are long, so that nothing but the bound of a look at it lets the answers come.
    patient: dict[str, Any] = {"statement_timeout_s": 60, "connect_timeout_s": 60, "health_interval_s": 0.3}
    with (
        own_postgres() as (url, folder),
        serving(database_url=url, telemetry="true", ops_port=ops, heartbeat_interval_s=0.5, **patient) as service,
        httpx2.Client(base_url=f"http://127.0.0.1:{ops}", timeout=PATIENCE_S) as http,
    ):

        def status_of_database() -> str:
            return http.get("/health").json()["components"].get("database", {}).get("status", "")

        await until(lambda: status_of_database() == "healthy")
        with hanging(folder):
            await until(lambda: http.get("/health").json()["status"] == "unhealthy")
            for _ in range(5):
                assert http.get("/health").json()["status"] == "unhealthy"
            component = http.get("/health").json()["components"]["database"]
            assert component["status"] == "unhealthy"
            assert component["detail"] == f"no answer within {CHECK_TIMEOUT_S} s"
            assert component["todo"]
            async with Client(service.url) as client:
                assert (await Agent(client).read("handoff://health"))["status"] == "unhealthy"
        await until(lambda: status_of_database() == "healthy")

        def stored() -> list[str]:
            history = http.get("/health").json()["history"]
            return [change["status"] for change in history if change["component"] == "database"]

        await until(lambda: stored()[:2] == ["healthy", "unhealthy"])


async def test_a_stuck_event_loop_is_unhealthy_as_seen_from_another_thread(settings: Settings) -> None:
    async with open_app(settings) as app:
        await until(lambda: app.health.report()["components"])
        found: list[dict[str, Any]] = []

        def look() -> None:
            give_up = time.monotonic() + PATIENCE_S
            while (report := app.health.report())["components"]["event_loop"]["status"] != "unhealthy":
                assert time.monotonic() < give_up
                time.sleep(0.05)
            found.append(report)
            time.sleep(1)  # so that the delay of the loop's own timer is long enough, too

        watcher = threading.Thread(target=look)
        watcher.start()
        watcher.join()  # on the loop: nothing else runs until it has been seen
        assert found[0]["components"]["event_loop"]["status"] == "unhealthy"
        assert found[0]["status"] == "unhealthy"
        assert (await checked(app.health))["components"]["event_loop"][
            "status"
        ] == "unhealthy"  # the longest lag of the last minute counts


async def test_a_worker_that_is_missing_is_unhealthy_and_one_that_stops_degrades(
    settings: Settings, db: asyncpg.Connection
) -> None:
    async with open_app(settings.model_copy(update={"jobs": False})) as app:
        report = await checked(app.health)
        assert report["components"]["worker"]["status"] == "unhealthy"
        assert "handoff work" in report["components"]["worker"]["todo"]
        await until(lambda: app.health.presence.alive)
        for age_s, status in ((5, "healthy"), (60, "degraded"), (300, "unhealthy")):
            await db.execute("UPDATE instance SET jobs_at = now() - make_interval(secs => $1)", age_s)
            assert (await checked(app.health))["components"]["worker"]["status"] == status


async def test_a_cache_that_is_down_degrades(settings: Settings) -> None:
    from pydantic import SecretStr

    away = settings.model_copy(update={"redis_url": SecretStr(f"redis://127.0.0.1:{free_port()}")})
    async with open_app(away) as app:
        report = await checked(app.health)
        assert (report["status"], report["components"]["cache"]["status"]) == ("degraded", "degraded")


@pytest.mark.parametrize(
    ("figure", "status"), [(79.0, "healthy"), (80.0, "degraded"), (94.9, "degraded"), (95.0, "unhealthy")]
)
async def test_memory_and_disk_follow_their_thresholds(
    app: App, monkeypatch: pytest.MonkeyPatch, figure: float, status: str
) -> None:
    limit = memory_limit()

    class Process:
        def memory_info(self) -> Any:
            return type("Info", (), {"rss": figure / 100 * limit})

    app.health._watched.process = Process()  # pyright: ignore[reportAttributeAccessIssue] - a process that uses the given share of the memory
    assert (await checked(app.health))["components"]["memory"]["status"] == status


FIGURES = Figures(seconds=60, calls=0, failed=0, timed=0, p95_s=0, acquired=0, waited=0, cpu_s=0, active_mean=0)


@pytest.mark.parametrize(
    ("component", "figures", "status"),
    [
        ("calls", {"calls": 100, "failed": 4}, "healthy"),
        ("calls", {"calls": 100, "failed": 5}, "degraded"),
        ("calls", {"calls": 100, "failed": 50}, "unhealthy"),
        ("calls", {"calls": 2, "failed": 2}, "healthy"),  # two may be chance
        ("latency", {"timed": 20, "p95_s": 1.9}, "healthy"),
        ("latency", {"timed": 20, "p95_s": 2.1}, "degraded"),
        ("latency", {"timed": 20, "p95_s": 10.1}, "unhealthy"),
        ("latency", {"timed": 19, "p95_s": 10.1}, "healthy"),
        ("concurrency", {"active_mean": 9.9}, "healthy"),
        ("concurrency", {"active_mean": 10}, "degraded"),
        ("concurrency", {"active_mean": 64}, "degraded"),  # load alone makes nothing unhealthy
        ("pool", {"acquired": 100, "waited": 4}, "healthy"),
        ("pool", {"acquired": 100, "waited": 5}, "degraded"),
        ("pool", {"acquired": 100, "waited": 50}, "unhealthy"),
        ("cpu", {"cpu_s": 53 * cpu_limit()}, "healthy"),
        ("cpu", {"cpu_s": 55 * cpu_limit()}, "degraded"),
        ("cpu", {"cpu_s": 55, "seconds": 9}, "healthy"),  # a start takes all that it can get
    ],
)
async def test_what_calls_experience_follows_its_thresholds(
    app: App, component: str, figures: dict[str, float], status: str
) -> None:
    watched = replace(app.health._watched, recent=SimpleNamespace(figures=lambda: replace(FIGURES, **figures)))
    reading = await CHECKS[component](watched)
    assert reading.status == status, reading
    assert bool(reading.todo) == (status != "healthy")


def test_a_percentile_is_interpolated_as_prometheus_does() -> None:
    assert quantile(0.95, (1, 2), (0, 0, 0)) == 0
    assert quantile(0.5, (1, 2), (10, 10, 0)) == 1
    assert quantile(0.95, (1, 2), (10, 10, 0)) == pytest.approx(1.9)
    assert quantile(0.95, (1, 2), (0, 0, 5)) == 2  # above all bounds: at least the last


async def test_calls_that_all_fail_are_unhealthy_while_the_database_answers_and_the_service_is_ready(
    settings: Settings, db: asyncpg.Connection
) -> None:
    async with (
        open_app(settings.model_copy(update={"statement_timeout_s": 0.2})) as app,
        Client(build_server(app)) as client,
        db.transaction(),
    ):
        await db.execute("LOCK TABLE session")
        for _ in range(FAILURES_MIN):
            assert (await Agent(client).refused("register_session", agent="alice"))["code"] == "unavailable"
        report = await checked(app.health)
        assert await Readiness(app.health.probe).problem() is None
    assert report["status"] == report["components"]["calls"]["status"] == "unhealthy"
    assert report["components"]["calls"]["figure"] == 100
    assert report["components"]["database"]["status"] == "healthy"


async def test_a_pool_without_a_free_connection_is_not_unready_but_unhealthy(app: App) -> None:
    waiting = FAILURES_MIN
    async with anyio.create_task_group() as group:

        async def take() -> None:
            async with connection(app.pool):
                pass

        async with AsyncExitStack() as all_connections:
            for _ in range(app.settings.pool_size):
                await all_connections.enter_async_context(connection(app.pool))
            for _ in range(waiting):
                group.start_soon(take)
            await until(lambda: metrics.POOL_PENDING.value() == waiting)
            assert await Readiness(app.health.probe).problem() is None
            await anyio.sleep(2 * LONG_WAIT_S)  # so that they have waited for long
    component = (await checked(app.health))["components"]["pool"]
    assert component["status"] != "healthy"
    # On a busy machine, opening the first connections may have taken long as well.
    assert component["figure"] >= round(100 * waiting / (waiting + app.settings.pool_size), 3)


async def test_the_first_answer_after_the_database_has_gone_silent_says_so(settings: Settings, database_url: str) -> None:
    async with proxied(database_url) as proxy:
        away = settings.model_copy(update={"database_url": SecretStr(proxy.url)})
        async with open_app(away) as app:
            assert (await checked(app.health))["components"]["database"]["status"] == "healthy"
            await proxy.silence("handoff-health", and_new=True)
            app.health._checked_at = 0.0
            await app.health.check()
            component = app.health.report()["components"]["database"]
            assert (component["status"], component["detail"]) == ("unhealthy", f"no answer within {CHECK_TIMEOUT_S} s")
            assert await Readiness(app.health.probe).problem() == "the database does not answer"


async def test_a_connection_that_was_cut_silently_is_not_taken_for_a_database_that_is_away(
    settings: Settings, database_url: str
) -> None:
    async with proxied(database_url) as proxy:
        through = settings.model_copy(update={"database_url": SecretStr(proxy.url)})
        async with open_app(through) as app:
            await checked(app.health)
            await proxy.silence()
            app.health._checked_at = 0.0
            await app.health.check()
            assert app.health.report()["components"]["database"]["status"] == "healthy"
            assert await Readiness(app.health.probe).problem() is None


async def test_a_reading_that_is_too_old_is_not_shown_as_current(app: App) -> None:
    await checked(app.health)
    app.health._components["database"].checked_at -= 100
    component = app.health.report()["components"]["database"]
    assert component["status"] == "unhealthy"
    assert component["detail"].startswith("not checked for 100 s")


SERVICE = {"handoff-wakeups", "handoff-health", "handoff-presence"}


@pytest.mark.parametrize(
    ("kind", "jobs", "dedicated"),
    [
        ("service", {"jobs": False}, SERVICE),
        ("service", {"jobs": True}, {*SERVICE, "handoff-jobs"}),
        ("worker", {}, {*SERVICE, "handoff-jobs"}),
    ],
)
async def test_a_process_has_as_many_connections_as_the_settings_say(
    settings: Settings, db: asyncpg.Connection, kind: Kind, jobs: dict[str, bool], dedicated: set[str]
) -> None:
    names = "SELECT application_name FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    wanted = sorted([*dedicated, *["handoff"] * settings.pool_size])
    async with open_app(settings.model_copy(update=jobs), kind) as app, jobs_beside(app):
        await checked(app.health)
        async with AsyncExitStack() as all_connections:
            for _ in range(settings.pool_size):
                await all_connections.enter_async_context(connection(app.pool))
            with anyio.fail_after(PATIENCE_S):
                while sorted(row[0] for row in await db.fetch(names)) != wanted:
                    await anyio.sleep(0.05)
    said = str(Settings.model_fields["pool_size"].description)
    assert "three in a service, one more if it runs the jobs, and four in a worker" in said


async def test_running_processes_are_found_and_ended_ones_are_not(settings: Settings) -> None:
    fast = settings.model_copy(update={"heartbeat_interval_s": 0.2})
    async with open_app(fast, operations="one:9464") as one:
        async with open_app(fast, "worker", operations="two:9464"):
            await until(lambda: {process["operations"] for process in one.health.presence.alive} == {"one:9464", "two:9464"})
        await until(lambda: {process["operations"] for process in one.health.presence.alive} == {"one:9464"})


async def test_the_metrics_resource_needs_the_scope_admin(observed: App) -> None:
    from handoff.model import Caller

    async with Client(build_server(observed)) as client:
        result = await client.read_resource("handoff://metrics")
        assert "mcp_server_operation_duration_seconds" in getattr(result.contents[0], "text", "")
        assert result.contents[0].mime_type == "text/plain"
    async with Client(build_server(observed, Caller("alice", frozenset({"read", "write"})))) as client:
        with pytest.raises(Exception, match="scope admin"):
            await client.read_resource("handoff://metrics")
        assert await Agent(client).read("handoff://health")
