"""Series that operators name are read from Prometheus, whose absence is said once and fails nothing."""

import json
import re
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs

import anyio.to_thread
import asyncpg
import pytest
from mcp import Client
from pydantic import SecretStr

from handoff.app import open_app
from handoff.cli.backtest import backtest_command
from handoff.cli.doctor import examine
from handoff.cli.parser import parser
from handoff.context import App
from handoff.jobs import detect, incidents, promql
from handoff.operations import prometheus
from handoff.server.protocol import build_server
from handoff.settings import Settings
from handoff.store import promql as readings
from handoff.store import series
from handoff.store.connect import Connection, transact
from handoff.store.series import Point, Spec
from handoff.telemetry import metrics
from tests.agents import Agent

CONFIGURATION = """
[monitoring.promql.queue]
expression = "sum by (queue) (messages)"
kind = "count"
absence = "zero"
"""
POINTS = """
    SELECT name, labels::text, kind, absence, bucket, value FROM series_point JOIN series ON id = series_id
     WHERE name LIKE 'promql.%' ORDER BY labels, bucket
"""
UP = Spec("promql.up", "level", "alert", {"job": "demo"})
NOTHING = b'{"status": "success", "data": {"resultType": "matrix", "result": []}}'
ANOMALIES = "SELECT bucket, severity, sentence, incident_id FROM anomaly ORDER BY bucket"
Answer = Callable[[dict[str, str]], tuple[int, bytes]]


def matrix(asked: dict[str, str]) -> tuple[int, bytes]:
    """Two series, each with its time as its value; one of them is not a number at the end."""
    ends = range(int(float(asked["start"])), int(float(asked["end"])) + 1, int(asked["step"]))
    found = [
        {
            "metric": {"__name__": "m", "queue": queue},
            "values": [[end, last if end == ends[-1] else str(end)] for end in ends],
        }
        for queue, last in (("a", "7"), ("b", "NaN"))
    ]
    return 200, json.dumps({"status": "success", "data": {"resultType": "matrix", "result": found}}).encode()


def constant(status: int, body: bytes, _: dict[str, str]) -> tuple[int, bytes]:
    """The same, whatever is asked."""
    return status, body


@pytest.fixture
def answers() -> Generator[tuple[str, list[Answer]]]:
    """A server that answers as Prometheus does: its address, and what answers."""
    answer: list[Answer] = [matrix]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = parse_qs(self.rfile.read(int(self.headers["content-length"])).decode())
            status, body = answer[0]({name: values[0] for name, values in asked.items()})
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", answer
        server.shutdown()


async def test_what_an_operator_names_is_read_and_a_prometheus_that_is_away_is_told_once(
    settings: Settings,
    answers: tuple[str, list[Answer]],
    tmp_path: Path,
    db: asyncpg.Connection,
    logged: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prometheus, "ANSWER_BYTES_MAX", 10_000)
    url, answer = answers
    file = tmp_path / "handoff.toml"
    file.write_text(CONFIGURATION)
    with_both = {"prometheus_url": SecretStr(url), "config_file": file}
    async with open_app(settings.model_copy(update=with_both)) as app:
        began = datetime.now(UTC).replace(second=0, microsecond=0)
        await promql.run(app)
        first = await db.fetch(POINTS)
        for status, body in (
            (400, b'{"status": "error", "error": "parse error"}'),
            (200, b"<html>"),
            (200, b"[" + b"1," * 10_000),
            (200, b'{"status": "success", "data": {"result": [{"metric": null}]}}'),
        ):
            answer[0] = partial(constant, status, body)
            await promql.run(app)
            assert metrics.PROMQL_FAILED.value() == 1
        assert await db.fetch(POINTS) == first
        answer[0] = matrix
        await promql.run(app)
        assert metrics.PROMQL_FAILED.value() == 0
        assert await transact(app.pool, lambda conn: conn.fetchval("SELECT 1")) == 1

    of_a = [row for row in first if "a" in json.loads(row["labels"]).values()]
    assert {(row["name"], row["labels"], row["kind"], row["absence"]) for row in first} == {
        ("promql.queue", f'{{"queue": "{queue}"}}', "count", "zero") for queue in "ab"
    }
    ends = [row["bucket"].timestamp() + 60 for row in of_a]
    assert [row["value"] for row in of_a] == [*ends[:-1], 7]
    assert len(of_a) == 5
    assert len(first) == 9  # what is not a number is no point
    assert ends[-1] >= began.timestamp()
    said = [(line["event"], line.get("error")) for line in logged if line["event"].startswith("promql.")]
    assert said == [("promql.failed", "it refused: parse error"), ("promql.read", None)]


@pytest.fixture
async def reading(
    settings: Settings, answers: tuple[str, list[Answer]], tmp_path: Path
) -> AsyncGenerator[tuple[App, list[Answer], Agent]]:
    """A worker with an expression whose absence is an alert, and what answers it."""
    file = tmp_path / "handoff.toml"
    file.write_text('[monitoring.promql.up]\nexpression = "up"\nabsence = "alert"\n')
    update = {"prometheus_url": SecretStr(answers[0]), "config_file": file, "admin": True, "series_warm_up_s": 0.0}
    async with open_app(settings.model_copy(update=update)) as app, Client(build_server(app)) as client:
        yield app, answers[1], Agent(client)


async def judged(app: App, begins: datetime, values: Sequence[float], to: datetime) -> None:
    """What the worker makes of these values, a minute each from `begins` on, by the time `to`."""
    points = [Point(UP, begins + n * series.MINUTE, value) for n, value in enumerate(values)]

    async def work(conn: Connection) -> None:
        await series.put(conn, points, 10)
        await series.advance(conn, "rolled_up", to + detect.SETTLED)

    await transact(app.pool, work)
    await detect.run(app)
    await incidents.run(app)


async def test_a_series_whose_absence_is_an_alert_is_one_critical_incident_until_it_is_back(
    reading: tuple[App, list[Answer], Agent], db: asyncpg.Connection
) -> None:
    app, answer, agent = reading
    now: datetime = await db.fetchval("SELECT date_trunc('minute', now())")
    begins, gone = now - timedelta(hours=1), now - timedelta(minutes=8)
    await judged(app, begins, [1.0] * 52, now)
    assert not await db.fetch(ANOMALIES)  # nobody has looked: Prometheus was away
    answer[0] = partial(constant, 200, NOTHING)
    await promql.run(app)
    for minutes in (1, 2):  # what goes on is found again as the same
        await judged(app, now, [], now + minutes * series.MINUTE)
        found = await db.fetch(ANOMALIES)
        assert [(row["severity"], row["bucket"], row["incident_id"] is None) for row in found] == [
            ("critical", gone + timedelta(minutes=3), False)
        ]
    told = (await agent.read("handoff://analytics/anomalies"))["anomalies"][0]
    sentence = f"promql.up (job demo) has had no value since {gone:%Y-%m-%d %H:%M} UTC, and its absence is an alert."
    assert (told["value"], told["upper"], told["sentence"]) == (None, None, sentence)
    incident = (await agent.read("handoff://analytics/incidents"))["incidents"][0]
    assert (incident["state"], incident["summary"]) == ("open", f"{sentence} Likeliest cause: the service.")
    explained = await agent.ok("explain_anomaly", agent="ops", incident=incident["id"])
    assert explained["found"][0]["sentence"] == sentence

    back = now + timedelta(minutes=6)
    await judged(app, now, [1.0] * 6, back)
    assert await db.fetchval("SELECT closed_at FROM incident") is None  # it was absent in 8 of the last 15 minutes
    await judged(app, back, [1.0] * 7, back + timedelta(minutes=7))
    assert await db.fetchval("SELECT closed_at FROM incident") is not None
    assert await db.fetch(ANOMALIES) == found


async def test_minutes_in_which_prometheus_was_away_make_nothing_absent(
    reading: tuple[App, list[Answer], Agent], db: asyncpg.Connection
) -> None:
    app, answer, _ = reading
    now: datetime = await db.fetchval("SELECT date_trunc('minute', now())")
    answer[0] = partial(constant, 200, NOTHING)
    await judged(app, now - timedelta(hours=1), [1.0] * 30, now)
    long_ago = now - timedelta(minutes=32)
    await transact(app.pool, lambda conn: readings.note(conn, {"up": ("up", True)}, long_ago - series.MINUTE, long_ago))
    await promql.run(app)  # minutes are missing between this reading and the one before
    ((read_from, read_to),) = await db.fetch("SELECT read_from, read_to FROM promql_reading")
    assert read_to - read_from == series.LATE
    await db.execute("UPDATE promql_reading SET read_from = read_to - interval '3 minutes'")
    await judged(app, now, [], now + series.MINUTE)
    assert not await db.fetch(ANOMALIES)  # of half an hour without a value, nobody has looked at more than three minutes


async def test_an_expression_that_has_never_had_a_value_is_said_until_it_has_one_or_another_wording(
    reading: tuple[App, list[Answer], Agent], db: asyncpg.Connection, logged: list[dict[str, Any]]
) -> None:
    app, answer, agent = reading
    metrics.PROMQL_EMPTY.set(0)  # another test's
    answer[0] = partial(constant, 200, NOTHING)
    for _ in range(2):
        await promql.run(app)
    assert (metrics.PROMQL_EMPTY.value(), metrics.PROMQL_FAILED.value()) == (1, 0)
    assert [line["series"] for line in logged if line["event"] == "promql.empty"] == ["up"]
    since: datetime = await db.fetchval("SELECT named_at FROM promql_reading")
    said = f"Prometheus answers its expression, but has never had a value for it since {since:%Y-%m-%d %H:%M} UTC."
    assert (await agent.read("handoff://analytics/series"))["not_measured"] == {"promql.up": said}
    answer[0] = matrix
    await promql.run(app)
    answer[0] = partial(constant, 200, NOTHING)
    await promql.run(app)
    assert metrics.PROMQL_EMPTY.value() == 0  # it is absent now, which means what the expression declares
    named = app.policies.monitoring.promql["up"]
    app.policies.monitoring.promql["up"] = named.model_copy(update={"expression": "pu"})
    await promql.run(app)
    assert metrics.PROMQL_EMPTY.value() == 1
    app.policies.monitoring.promql.clear()
    await promql.run(app)
    assert (metrics.PROMQL_EMPTY.value(), await db.fetchval("SELECT count(*) FROM promql_reading")) == (0, 0)


async def test_a_backtest_judges_an_expression(
    answers: tuple[str, list[Answer]], capsys: pytest.CaptureFixture[str]
) -> None:
    def jumps(asked: dict[str, str]) -> tuple[int, bytes]:
        ends = range(int(float(asked["start"])), int(float(asked["end"])) + 1, int(asked["step"]))
        usual = [[end, str(100 + number * 7_919 % 13)] for number, end in enumerate(ends)]
        jumped = [*usual[:-10], *([at, "900"] for at, _ in usual[-10:])]
        found = [{"metric": {"queue": queue}, "values": values} for queue, values in (("a", usual), ("b", jumped))]
        return 200, json.dumps({"status": "success", "data": {"result": found}}).encode()

    answers[1][0] = jumps
    asked = ["backtest", "--promql", "m", "--prometheus", answers[0], "--since", "3h"]
    code = await anyio.to_thread.run_sync(backtest_command, parser().parse_args(asked))
    *alerts, last = capsys.readouterr().out.splitlines()
    assert (code, "Judged: 2 series, from" in last) == (0, True)
    assert {re.split("strength .*%  ", line)[1].split(" is ")[0] for line in alerts} == {"m (queue b)"}


async def test_the_doctor_asks_prometheus(settings: Settings, answers: tuple[str, list[Answer]]) -> None:
    with_it = settings.model_copy(update={"prometheus_url": SecretStr(answers[0])})
    found = [it async for it in examine(with_it) if it.check == "prometheus"]
    answers[1][0] = partial(constant, 502, b"<html>")
    refused = [it async for it in examine(with_it) if it.check == "prometheus"]

    assert [(it.found, it.todo) for it in found] == [("Prometheus answers", None)]
    assert [it.found for it in refused] == ["HANDOFF_PROMETHEUS_URL: the answer is not Prometheus's (HTTP status 502)"]


async def test_without_an_address_nothing_is_read(app: App, db: asyncpg.Connection) -> None:
    await promql.run(app)
    assert await db.fetch(POINTS) == []


def test_an_address_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="must begin with http"):
        Settings(prometheus_url=SecretStr("ftp://prometheus"))
