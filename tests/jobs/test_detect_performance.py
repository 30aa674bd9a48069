"""What processes counted goes through the rollup and the detector as any other series."""

import re
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from random import Random

import anyio
import anyio.to_thread
import asyncpg
import pytest

from handoff.cli import backtest_history
from handoff.cli.backtest import backtest_command
from handoff.cli.parser import parser
from handoff.context import App
from handoff.jobs import detect, rollup
from handoff.settings import Settings
from handoff.store import performance
from handoff.store.performance import Calls, Outcome
from tests.store.test_performance import bucket

MINUTES, FAILING = 300, 10  # of which the last ones fail
FOUND = """
    SELECT DISTINCT labels->>'operation' AS operation FROM anomaly JOIN series ON id = series_id
     WHERE name = $1 AND NOT shadow
"""

SAID = """
    SELECT bucket, sentence FROM anomaly JOIN series ON id = series_id
     WHERE name = 'calls.failed_ratio' AND labels->>'operation' = 'get_inbox' ORDER BY bucket
"""


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"series_warm_up_s": 3_600.0})


async def past(db: asyncpg.Connection) -> None:
    """Five hours of two tools, one of which fails half of its calls at the end."""
    random = Random(5)  # noqa: S311 - repeats the same past
    now: datetime = await db.fetchval("SELECT date_trunc('minute', now())")
    for ago in range(MINUTES, 0, -1):
        calls: list[Calls] = []
        for tool in ("update_context", "get_inbox"):
            total = random.randrange(40, 60)
            failed = total // 2 if tool == "get_inbox" and ago <= FAILING else int(random.random() < 0.2)
            counts: tuple[tuple[Outcome, int], ...] = (("ok", total - failed), ("failed", failed))
            calls += [Calls(tool, outcome, [0, 0, 0, n, *[0] * 15]) for outcome, n in counts]
        await performance.write(db, replace(bucket(now - timedelta(minutes=ago), "service", [], [], 1), calls=calls))


async def test_a_jump_in_the_error_ratio_of_a_tool_becomes_an_anomaly_of_that_tool_and_a_backtest_says_the_same(
    app: App,
    database_url: str,
    db: asyncpg.Connection,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    await past(db)
    await rollup.run(app)
    await detect.run(app)
    assert {row["operation"] for row in await db.fetch(FOUND, "calls.failed_ratio")} == {"get_inbox", None}  # and of all
    assert not await db.fetch(FOUND, "calls")

    monkeypatch.setenv("HANDOFF_DATABASE_URL", database_url)

    async def backtest(*arguments: str) -> tuple[int, str, str]:
        code = await anyio.to_thread.run_sync(backtest_command, parser().parse_args(["backtest", *arguments]))
        out, error = capsys.readouterr()
        return code, out, error

    said = await db.fetch(SAID)
    capsys.readouterr()
    page = tmp_path / "out.html"
    wanted = ("--since", "1d", "--series", "calls.failed_ratio (operation get_inbox)")
    code, out, _ = await backtest(*wanted, "--html", str(page))
    *lines, last = out.splitlines()
    assert (code, [line[:16] for line in lines]) == (0, [f"{row['bucket']:%Y-%m-%d %H:%M}" for row in said])
    assert all(line.endswith(row["sentence"]) for line, row in zip(lines, said, strict=True))
    assert re.match(rf"{len(said)} alerts?(, .* per week)?\. Judged: 1 series, from ", last)
    html = page.read_text()
    assert (html.count("<svg"), html.count('<td class="time">')) == (1, len(said))
    assert "<h2>calls.failed_ratio (operation get_inbox)</h2>" in html
    code, out, _ = await backtest("--since", "1d", "--sensitivity", "0.1")
    assert (code, out.startswith("0 alerts")) == (0, True)
    monkeypatch.setattr(backtest_history, "_CHARTS_MAX", 1)
    monkeypatch.setattr(backtest_history, "_POINTS_MAX", 5 * MINUTES)  # five series at a time
    code, out, _ = await backtest("--since", "1d", "--html", str(page))
    html = page.read_text()
    assert html.count("<svg") == 1
    assert "<h2>calls.failed_ratio" in html
    count = await db.fetchval("SELECT count(*) FROM series")
    assert f"<p>{count - 1} more series have no chart here" in html
    for wrong, says in (
        (("--series", "no.such"), "There is no series 'no.such'."),
        (("--since", "5"), "at most 366 days (24h, 7d, 4w), not '5'."),
        (("--promql", "up"), "--promql needs a Prometheus"),
        (("--promql", "up", "--prometheus", "http://127.0.0.1:9"), "Prometheus could not be asked: it does not answer"),
        (("x.csv", "--since", "1d"), "--since does not go with a file"),
    ):
        code, _, error = await backtest(*wrong)
        assert (code, says in error) == (2, True), error
