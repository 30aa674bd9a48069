"""What is configured while the service runs: a change is in force everywhere within two seconds, or is refused whole."""

import json
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Timer
from typing import Any

import anyio
import asyncpg
import pytest
import structlog
import yaml
from mcp import Client

from handoff import policies
from handoff.app import open_app
from handoff.configuration import ORDERED, THRESHOLDS, Watching
from handoff.context import App
from handoff.jobs.runner import run_jobs
from handoff.jobs.table import Job
from handoff.server.protocol import build_server
from handoff.settings import Settings
from handoff.telemetry import metrics
from tests.agents import Agent, all_of, until
from tests.processes import HANDOFF, PATIENCE_S, environment, serving

ROOT = Path(__file__).parents[1]
log = structlog.get_logger("test")
HOUR = timedelta(hours=1)
TEAM = {"active_hours": 48, "archived_days": 60, "logs_days": 14, "metrics_days": 60, "dormant_minutes": 90}

PERIODS = "SELECT name, extract(epoch FROM active_for)::float8 / 3600 AS hours FROM retention_policy"


@asynccontextmanager
async def operating(settings: Settings) -> AsyncGenerator[tuple[App, Agent]]:
    """An App with the admin tools, once it has read its configuration, and agents that use it."""
    async with open_app(settings.model_copy(update={"admin": True})) as app, Client(build_server(app)) as client:
        await until(lambda: app.policies.version)
        yield app, Agent(client)


@pytest.fixture
async def running(settings: Settings) -> AsyncGenerator[tuple[App, Agent]]:
    async with operating(settings) as both:
        yield both


async def change(agent: Agent, changes: dict[str, Any], version: int = 1, **more: Any) -> dict[str, Any]:
    asked = {"action": "set", "changes": json.dumps(changes), "expected_version": version, "reason": "a test", **more}
    return await agent.ok("configuration", agent="ops", **asked)


def thresholds(**values: Any) -> dict[str, Any]:
    return {"monitoring": {"thresholds": values}}


async def periods(db: asyncpg.Connection) -> dict[str, float]:
    return {row["name"]: row["hours"] for row in await db.fetch(PERIODS)}


async def test_a_change_is_a_version_with_author_reason_and_difference_and_can_be_taken_back(
    running: tuple[App, Agent], db: asyncpg.Connection, logged: list[dict[str, Any]]
) -> None:
    _, agent = running
    first = await agent.ok("configuration", agent="ops")
    assert (first["version"], first["author"], first["set"]) == (1, "service", [])
    assert set(first["in_force"]["retention"]) == {"standard", "extended", "short"}
    assert first["in_force"]["monitoring"]["thresholds"] == {name: it.default for name, it in THRESHOLDS.items()}

    changes = {
        **thresholds(error_ratio=0.1),
        "retention": {"team": TEAM, "extended": None, "short": {"active_hours": 8, "keeps_secrets": True}},
    }
    second = await change(agent, changes)
    assert (second["version"], second["author"], second["reason"]) == (2, "ops", "a test")
    assert {(it["field"], it.get("from"), it.get("to")) for it in second["changes"]} >= {
        ("monitoring.thresholds.error_ratio", None, 0.1),
        ("retention.team.active_hours", None, 48),
        ("retention.extended.active_hours", 72, None),
        ("retention.short.active_hours", 4, 8),
    }
    assert await periods(db) == {"standard": 24, "team": 48, "short": 8}
    assert await db.fetchval("SELECT array_agg(name) FROM retention_policy WHERE keeps_secrets") == ["short"]
    assert (await agent.ok("configuration", agent="ops"))["in_force"]["monitoring"]["thresholds"]["error_ratio"] == 0.1
    assert (await agent.read("handoff://config"))["set"] == ["thresholds.error_ratio"]
    assert (await agent.read("handoff://config"))["version"] == 2
    assert [(it["author"], it["configuration"]) for it in logged if it["event"] == "configuration.changed"] == [("ops", 2)]

    exported = (await agent.ok("configuration", agent="ops", action="export"))["document"]
    again = {"agent": "ops", "reason": "as before"}
    third = await agent.ok("configuration", action="rollback", version=1, expected_version=2, **again)
    assert third["version"] == 3
    assert await periods(db) == {"standard": 24, "extended": 72, "short": 4}
    fourth = await agent.ok("configuration", action="import", document=exported, expected_version=3, **again)
    assert fourth["changes"] == second["changes"]
    assert await periods(db) == {"standard": 24, "team": 48, "short": 8}
    assert (await change(agent, thresholds(error_ratio=0.1), version=4))["version"] == 4, "nothing differs: no new version"

    history = await agent.ok("configuration", agent="ops", action="history")
    assert [(it["version"], it["reason"]) for it in history["versions"]] == [
        (4, "as before"), (3, "as before"), (2, "a test"), (1, "As shipped."),
    ]  # fmt: skip
    assert history["versions"][0]["changes"] == second["changes"]
    audited = await db.fetch("SELECT actor, action, target, details FROM audit ORDER BY id")
    assert [tuple(it)[:3] for it in audited] == [
        ("ops", "configuration.set", "version 2"),
        ("ops", "configuration.rollback", "version 3"),
        ("ops", "configuration.import", "version 4"),
    ]
    assert json.loads(audited[0]["details"]) == {"reason": "a test", "changes": second["changes"]}


async def test_how_series_are_watched_is_configured_like_all_else(running: tuple[App, Agent]) -> None:
    app, agent = running
    window = {"muted": True, "tool": "get_inbox", "since": "2026-11-29T22:00:00+01:00", "until": "2026-11-29T23:00:00+01:00"}
    rules = [window, {"sensitivity": 2, "series": "calls.failed"}, {"sensitivity": 0.5, "tell": "always"}]
    changed = await change(agent, {"analytics": {"series": rules}})
    assert [it["field"] for it in changed["changes"]] == ["analytics.series"]
    shown = (await agent.ok("configuration", agent="ops"))["in_force"]["analytics"]["series"]
    assert shown[0] == {**window, "since": "2026-11-29T21:00:00Z", "until": "2026-11-29T22:00:00Z"}

    def watched(name: str, minute: int = 0, **labels: str) -> Watching:
        return app.policies.analytics.watching(name, labels, datetime(2026, 11, 29, 22, minute, tzinfo=UTC) - HOUR)

    assert watched("calls.failed", tool="get_inbox") == Watching(2, muted=True, tell="always")
    assert watched("calls.failed", tool="get_context") == Watching(2, muted=False, tell="always")
    assert watched("handoffs.offered") == Watching(0.5, muted=False, tell="always")
    at_the_end = datetime(2026, 11, 29, 22, tzinfo=UTC)
    assert not app.policies.analytics.watching("calls.failed", {"tool": "get_inbox"}, at_the_end).muted
    await change(agent, {"analytics": None}, version=2)
    await agent.ok("configuration", agent="ops")  # which reads what is in force
    assert watched("calls.failed") == Watching()


BAD: list[tuple[dict[str, Any], str]] = [
    (thresholds(error_ratio=2), "error_ratio must be a number from 0.001 to 1"),
    (thresholds(error_ratio="1"), "error_ratio must be a number from 0.001 to 1"),
    (thresholds(error_ratio=True), "error_ratio must be a number from 0.001 to 1"),
    (thresholds(error_rate=0.1), "'error_rate' is not a threshold; the thresholds are bad_events_min, "),
    (thresholds(memory_ratio=0.97), "memory_ratio is 0.97, but must be at most memory_critical_ratio, which is 0.95"),
    ({"monitoring": {"job_intervals_s": {"settle": 0}}}, "settle must be a number from 1 to 604800"),
    ({"monitoring": {"job_intervals_s": {"tidy": 5}}}, "'tidy' is not a job; the jobs are "),
    ({"monitoring": {"log_level": "loud"}}, "monitoring.log_level: Input should be 'debug', 'info', 'warning' or 'error'"),
    ({"monitoring": {"log_filters": [{"level": "debug"}]}}, "monitoring.log_filters.0: needs at least one of event, tool"),
    ({"monitoring": {"colour": 1}}, "monitoring.colour: Extra inputs are not permitted"),
    ({"retention": {"standard": None}}, "retention must contain 'standard'"),
    ({"retention": {"a b": TEAM}}, "retention.a b: String should match"),
    ({"retention": {"lab": {"active_hours": 1}}}, "retention.lab.archived_days: Field required"),
    ({"retention": {"short": {"active_hours": 0}}}, "retention.short.active_hours: must be a whole number from 1 to 8760"),
    ({"retention": {"short": {"logs_days": 1.5}}}, "retention.short.logs_days: must be a whole number from 1 to 3650"),
    ({"retention": {"short": {"dormant_minutes": 500}}}, "dormant_minutes must be at most 240, which is active_hours in"),
    ({"analytics": {"series": [{}]}}, "analytics.series.0: needs at least one of sensitivity, muted and tell"),
    ({"analytics": {"alerts_per_series_week": 0}}, "alerts_per_series_week must be a number from 0.01 to 10"),
    ({"analytics": {"series": [{"sensitivity": 5}]}}, "sensitivity must be a number from 0.25 to 4"),
    (
        {"analytics": {"series": [{"muted": True, "until": "tonight"}]}},
        "analytics.series.0.until: must be a time in ISO 8601",
    ),
    ({"analytics": {"series": [{"muted": True, "until": "2026-11-29T22:00:00"}]}}, "with a time zone"),
    ({"analytics": {"series": [{"muted": True, "series": "A B"}]}}, "analytics.series.0.series: String should match"),
    ({"retention": {f"p{n}": TEAM for n in range(50)}}, "retention: Dictionary should have at most 50 items"),
]


def together(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    both = {name: together(one[name], other[name]) for name in one.keys() & other.keys() if isinstance(one[name], dict)}
    return {**one, **other, **both}


async def test_a_bad_change_is_refused_whole_and_the_refusal_names_the_field_and_what_is_allowed(
    running: tuple[App, Agent], db: asyncpg.Connection
) -> None:
    _, agent = running
    good = {**thresholds(slow_statements=7), "retention": {"team": TEAM}}
    asked = {"agent": "ops", "action": "set", "expected_version": 1, "reason": "a test"}
    for bad, said in BAD:
        both = together(good, bad)
        error = await agent.refused("configuration", changes=json.dumps(both), **asked)
        assert (error["code"], error["retryable"]) == ("invalid_configuration", False)
        assert said in error["message"], bad
    for missing in ("expected_version", "reason", "changes"):
        call = {name: value for name, value in {**asked, "changes": json.dumps(good)}.items() if name != missing}
        assert missing in (await agent.refused("configuration", **call))["message"]
    call = {**asked, "action": "import", "document": json.dumps({"retention": {}})}
    assert "not an export" in (await agent.refused("configuration", **call))["message"]
    for text in ("[]", "{", "1"):
        error = await agent.refused("configuration", **asked, changes=text)
        assert "changes must be the text of a JSON object" in error["message"]
    call = {**asked, "action": "rollback", "version": 9}
    assert (await agent.refused("configuration", **call))["code"] == "version_not_found"
    assert (await agent.refused("configuration", **asked | {"expected_version": 9}, changes=json.dumps(good)))["code"] == (
        "configuration_changed"
    )
    assert await periods(db) == {"standard": 24, "extended": 72, "short": 4}
    assert await db.fetchval("SELECT (SELECT count(*) FROM configuration) + (SELECT count(*) FROM audit)") == 1


async def test_of_changes_made_at_the_same_time_one_takes_effect(running: tuple[App, Agent], db: asyncpg.Connection) -> None:
    _, agent = running

    async def attempt(n: int) -> str:
        asked = {
            "action": "set",
            "changes": json.dumps(thresholds(slow_statements=n)),
            "expected_version": 1,
            "reason": "a race",
        }
        result = await agent.client.call_tool("configuration", {"agent": f"ops{n}", **asked})
        return json.loads(getattr(result.content[0], "text", ""))["error"]["code"] if result.is_error else "done"

    assert sorted(await all_of(*(attempt(n) for n in range(6, 12)))) == [*["configuration_changed"] * 5, "done"]
    assert await db.fetchval("SELECT count(*) FROM configuration") == 2


async def test_sessions_can_have_any_policy_that_exists_and_one_in_use_is_kept(
    running: tuple[App, Agent], db: asyncpg.Connection
) -> None:
    _, agent = running
    error = await agent.refused("register_session", agent="alice", retention_policy="team")
    assert error["code"] == "unknown_retention_policy"
    assert "The policies are extended, short, standard." in error["message"]
    await change(agent, {"retention": {"team": TEAM}})
    await agent.session(retention_policy="team")
    hours = "SELECT extract(epoch FROM expires_at - last_activity_at)::float8 / 3600 FROM session"
    assert await db.fetchval(hours) == 48
    asked = {"agent": "ops", "action": "set", "changes": json.dumps({"retention": {"team": None}}), "reason": "a test"}
    assert (await agent.refused("configuration", expected_version=2, **asked))["code"] == "policy_in_use"
    assert (await periods(db))["team"] == 48
    assert (await agent.ok("configuration", agent="ops"))["version"] == 2


async def test_what_is_configured_has_its_effect_at_once(running: tuple[App, Agent], logged: list[dict[str, Any]]) -> None:
    app, agent = running
    filters = [{"event": "test.said", "agent": "bob", "level": "debug"}, {"event": "test.said", "level": "error"}]
    monitoring = {"job_intervals_s": {"settle": 77}, "log_level": "warning", "log_filters": filters}
    await change(agent, {"monitoring": {**monitoring, "thresholds": {"disk_ratio": 0.001, "jobs_age_seconds": 50}}})
    await until(lambda: app.policies.version == 2)

    app.health._checked_at = 0.0
    disk = (await agent.read("handoff://health"))["components"]["disk"]
    assert (disk["status"], disk["degraded_from"]) == ("degraded", 0.1)
    assert app.health.report()["components"]["worker"]["unhealthy_from"] == 50
    served = (await agent.read_text("handoff://metrics?name=handoff_threshold")).splitlines()
    values = {line.split('"')[1]: float(line.split()[-1]) for line in served if line.startswith("handoff_threshold{")}
    assert (values["disk_ratio"], values["error_ratio"], set(values)) == (0.001, 0.05, set(THRESHOLDS))

    for level, who in (("debug", "bob"), ("warning", "eve"), ("error", "eve")):
        getattr(log, level)("test.said", agent=who)
    log.info("test.other")
    log.warning("test.other")
    said = [(it["event"], it["level"]) for it in logged if it["event"].startswith("test.")]
    assert said == [("test.said", "debug"), ("test.said", "error"), ("test.other", "warning")]

    assert app.policies.job_interval_s("settle", 5) == 77
    assert app.policies.job_interval_s("measure", 15) == 15


async def test_a_job_that_would_run_in_an_hour_runs_soon_when_its_interval_becomes_short(running: tuple[App, Agent]) -> None:
    app, agent = running
    ran: list[int] = []

    async def note(_: App) -> None:
        ran.append(1)

    async with anyio.create_task_group() as group:
        group.start_soon(run_jobs, app, [Job("settle", lambda _: 3_600, note)])
        await until(lambda: ran)
        await change(agent, {"monitoring": {"job_intervals_s": {"settle": 1}}})
        await until(lambda: len(ran) >= 3)
        assert metrics.JOB_INTERVAL.value("settle") == 1
        group.cancel_scope.cancel()


async def test_a_version_that_this_release_cannot_use_leaves_the_one_before_in_force_and_shows(
    running: tuple[App, Agent], db: asyncpg.Connection, logged: list[dict[str, Any]]
) -> None:
    app, agent = running
    await change(agent, thresholds(error_ratio=0.1, configuration_refused_seconds=0.001))
    await until(lambda: app.policies.version == 2)
    put = "INSERT INTO configuration SELECT $1, now(), 'a', 'b', document || $2, '[]' FROM configuration WHERE version = 2"
    await db.execute(put, 3, '{"of_a_later_release": 1}')
    app.policies.wake()
    await until(lambda: app.policies.problem)
    assert app.policies.threshold("error_ratio") == 0.1
    app.health._checked_at = 0.0
    seen = (await agent.read("handoff://health"))["components"]["configuration"]
    assert seen["status"] == "degraded"
    assert "version 3: of_a_later_release: Extra inputs are not permitted" in seen["detail"]
    assert "of_a_later_release" in (await agent.read("handoff://config"))["refused"]
    assert sum(it["event"] == "configuration.refused" for it in logged) == 1
    await db.execute(put, 4, "{}")
    app.policies.wake()
    await until(lambda: app.policies.version == 4)
    assert app.policies.problem == ""


async def test_the_file_holds_defaults_and_its_change_is_noticed(
    settings: Settings, tmp_path: Path, logged: list[dict[str, Any]]
) -> None:
    file = tmp_path / "handoff.toml"
    file.write_text('[monitoring]\nlog_level = "error"\n[monitoring.thresholds]\nerror_ratio = 0.2\nslow_statements = 9\n')
    async with operating(settings.model_copy(update={"config_file": file, "settle_interval_s": 0.05})) as (app, agent):
        assert app.policies.threshold("error_ratio") == 0.2
        await change(agent, thresholds(error_ratio=0.1))
        await until(lambda: app.policies.threshold("error_ratio") == 0.1)
        assert app.policies.threshold("slow_statements") == 9
        for bad, said in (
            ("[monitoring.thresholds]\nslow_statements = -1\n", "slow_statements must be a number from 0 to"),
            ("[monitoring\n", "Expected ']'"),
            ("[retention.team]\nactive_hours = 1\n", "retention: policies are in the database"),
            ("[monitoring.thresholds]\nerror_critical_ratio = 0.07\n", "error_ratio is 0.1, but must be at most"),
        ):
            file.write_text(bad)
            await until(lambda said=said: said in app.policies.problem)
            assert (app.policies.threshold("slow_statements"), app.policies.monitoring.log_level) == (9, "error")
        file.write_text("[monitoring.thresholds]\nslow_statements = 8\n")
        await until(lambda: app.policies.threshold("slow_statements") == 8)
        assert (app.policies.problem, app.policies.refused_s, app.policies.monitoring.log_level) == ("", 0, None)
        file.unlink()
        await until(lambda: app.policies.threshold("slow_statements") == 5)
    assert [it["origin"] for it in logged if it["event"] == "configuration.refused"] == ["file"] * 4


async def test_a_change_whose_notification_is_lost_is_found_by_asking(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "_POLL_S", 0.1)
    async with operating(settings) as (_, agent), open_app(settings) as deaf:
        deaf.wakeups.on_configuration.clear()
        await until(lambda: deaf.policies.version == 1)
        await change(agent, thresholds(error_ratio=0.1))
        await until(lambda: deaf.policies.threshold("error_ratio") == 0.1)


async def test_only_administrators_can_use_it(agent: Agent) -> None:
    assert "configuration" not in {tool.name for tool in (await agent.client.list_tools()).tools}


def test_a_change_is_in_force_in_every_process_within_two_seconds(database_url: str) -> None:
    with serving("--admin", database_url=database_url, jobs=False) as service:
        settings = environment(database_url=database_url)
        worker = subprocess.Popen(
            [HANDOFF, "work"], env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            for process in (service.process, worker):
                assert applied(process, 1)
            changed_at = datetime.fromisoformat(anyio.run(change_over_http, service.url)["at"])
            delays = [(applied(process, 2) - changed_at).total_seconds() for process in (service.process, worker)]
            assert max(delays) < 2, delays
        finally:
            worker.terminate()
            worker.communicate(timeout=PATIENCE_S)


def applied(process: subprocess.Popen[str], version: int) -> datetime:
    """When the process applied this version of the database's configuration, as its log says."""
    assert process.stdout is not None
    late = Timer(PATIENCE_S, process.kill)  # which ends the lines
    late.start()
    for line in process.stdout:
        if '"event":"configuration.applied"' in line and (said := json.loads(line)).get("configuration") == version:
            late.cancel()
            return datetime.fromisoformat(said["time"])
    raise AssertionError(f"version {version} was not applied")


async def change_over_http(url: str) -> dict[str, Any]:
    async with Client(url) as client:
        return await change(Agent(client), thresholds(error_ratio=0.1))


def test_the_defaults_of_thresholds_are_the_same_for_prometheus() -> None:
    rules = yaml.safe_load((ROOT / "prometheus/rules/thresholds.yml").read_text())["groups"][0]["rules"]
    found = {it["labels"]["of"]: it["expr"] for it in rules if it["record"] == "handoff:threshold"}
    for name, expression in found.items():
        default = f"{THRESHOLDS[name].default:.15g}"
        assert expression == f'handoff:threshold:configured{{of="{name}"}} or on () vector({default})'
    assert len(found) >= 40


def test_thresholds_have_defaults_within_their_range_and_in_order() -> None:
    for name, it in THRESHOLDS.items():
        assert it.least <= it.default <= it.most, name
    for less, more in ORDERED:
        assert THRESHOLDS[less].default <= THRESHOLDS[more].default
