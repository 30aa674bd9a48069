"""The report: one page that says what happened, shows nothing that could run, and needs nothing from elsewhere."""

import asyncio
import re
from argparse import Namespace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Final

import asyncpg
import numpy as np
import pytest

from handoff.cli.report import report_command
from handoff.jobs.trends import conclude
from handoff.store import days
from handoff.store.connect import prepare_connection
from tests.cli.test_commands import handoff
from tests.past import filled

HOSTILE: Final = "</td><script>alert('x')</script>$x_1$&<svg onload=alert(1)>"
TODAY: Final = datetime.now(UTC).date()
_ALERT: Final = """
    INSERT INTO alert (fingerprint, starts_at, ends_at, status, labels, annotations)
    VALUES ('f', now() - interval '2 hours', now() - interval '1 hour', 'resolved',
            '{"alertname": "HandoffSlow", "severity": "critical"}', jsonb_build_object('summary', $1::text))
"""
# 100 alerts of the period, 50 from before it of which one fires, and 1,100 points that the detector was only learning from.
_MANY: Final = """
    WITH a AS (INSERT INTO alert (fingerprint, starts_at, ends_at, status, labels, annotations)
               SELECT 'many ' || n, at, CASE WHEN n > 1 THEN at END, CASE n WHEN 1 THEN 'firing' ELSE 'resolved' END,
                      '{}', '{}'
                 FROM generate_series(1, 150) n,
                      LATERAL (SELECT now() - CASE WHEN n > 50 THEN 3 ELSE 40 END * interval '1 day') began (at)),
         s AS (INSERT INTO series (name, labels, kind, absence, begins_at, last_at)
               VALUES ('learnt', '{}', 'count', 'zero', now(), now())
               RETURNING id)
    INSERT INTO anomaly (series_id, bucket, version, severity, shadow, value, expected, lower, upper, strength, confidence,
                         spoke, sentence)
    SELECT s.id, now() - n * interval '1 second', 1, 'warning', true, 0, 5, 1, 9, 2, 0.5, '{}', 'finding 0'
      FROM s, generate_series(1, 1100) n
"""
_ANOMALY: Final = """
    WITH s AS (INSERT INTO series (name, labels, kind, absence, begins_at, last_at)
               VALUES ('handoffs.offered', jsonb_build_object('agent', $1::text), 'count', 'zero', now(), now())
               RETURNING id)
    INSERT INTO anomaly (series_id, bucket, version, severity, shadow, value, expected, lower, upper, strength, confidence,
                         spoke, sentence)
    SELECT s.id, now() - n * interval '1 hour', 1, 'warning', n = 3, 0, 5, 1, 9, 2, 0.5, '{}', 'finding ' || n
      FROM s, generate_series(1, 3) n
"""


class Page(HTMLParser):
    """The tags of a page, each with its attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


async def past(url: str) -> None:
    """Two months of work, tables that grow, an alert and an agent with names that could be taken for HTML."""
    conn = await asyncpg.connect(url)
    await prepare_connection(conn)
    await filled(conn)
    await conn.execute("UPDATE handoff SET sender = $1 WHERE sender = 'ada'", HOSTILE)
    await conn.execute("UPDATE context_entry SET author = $1 WHERE author = 'ada'", HOSTILE)
    await conn.execute(_ALERT, HOSTILE)
    await conn.execute(_ANOMALY, HOSTILE)
    await conn.execute(_MANY)
    chance = np.random.default_rng(5)
    grown = (20 << 30) + np.cumsum(chance.uniform(0.5, 1.5, 40) * (1 << 30))
    known = {
        "storage_bytes": {TODAY - timedelta(days=40 - n): float(value) for n, value in enumerate(grown)},
        "to_accept_s": {TODAY - timedelta(days=40 - n): 60.0 + 4 * n for n in range(40)},
    }
    for name, values in known.items():
        for day, value in values.items():
            await days.record(conn, day, {name: value})
    trends, capacity = conclude(known, {}, TODAY, {"storage_bytes": 80 << 30})
    await days.conclude(conn, "trends", trends)
    await days.conclude(conn, "capacity", capacity)
    await conn.close()


@pytest.fixture(scope="module")
def report(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    asyncio.run(past(module_database_url))
    out = tmp_path_factory.mktemp("report") / "report.html"
    done = handoff("report", "--since", "30d", "--out", str(out), database_url=module_database_url)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(rf"{out}: [1-9]\d* sessions, [1-9]\d* handoffs\.\n", done.stdout)
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]
    return out.read_text(encoding="utf-8")


def test_the_report_is_one_page_that_needs_nothing_from_elsewhere(report: str) -> None:
    page = Page(report)
    assert not {tag for tag, _ in page.tags} & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "image",
        "foreignobject",
    }
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        assert all(
            (value or "#").startswith("#") for name, value in attributes.items() if name in ("href", "xlink:href", "src")
        )
    assert "@import" not in report
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)", report))
    assert (
        "meta",
        {"http-equiv": "Content-Security-Policy", "content": "default-src 'none'; style-src 'unsafe-inline'"},
    ) in page.tags
    assert len(report) < 500_000


def test_hostile_names_are_text(report: str) -> None:
    assert HOSTILE not in report
    assert Page(report).text.count(HOSTILE) >= 5  # an alert, two anomalies, a route and an author


def test_the_report_says_what_happened_what_was_unusual_and_what_to_change(report: str) -> None:
    page = Page(report)
    assert [attributes["aria-label"] for tag, attributes in page.tags if tag == "figure"] == [
        "Sessions created",
        "Handoffs, by how they ended",
        "Time from offer to acceptance",
        "Content written",
        "Size of the tables, and its forecast",
    ]
    assert page.text.count("no alert fired") == 0
    assert "The tables reach their limit" in page.text
    assert "The time until a handoff is accepted has changed by" in page.text
    assert "1 h" in page.text  # how long the alert lasted
    assert page.text.index("finding 1") < page.text.index("finding 2")  # the newest first
    assert not re.search("finding [03]", page.text)  # the series were still being learnt
    assert "4 more are not shown." in page.text  # of 102 alerts and 2 anomalies
    for name in ("Routes", "Who wrote", "Trends"):
        assert name in page.text


def test_charts_take_their_colours_from_the_page_in_light_dark_and_print(report: str) -> None:
    charts = re.findall(r"<svg.*?</svg>", report, re.DOTALL)
    assert len(charts) == 5
    for chart in charts:
        assert set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{3,6})", chart)) <= {"#ffffff"}  # of nothing that is drawn
        assert "var(--ink)" in chart
    used = set(re.findall(r"var\((--[a-z]+)\)", report))
    for scheme in re.findall(r":root \{[^}]*\}", report):
        assert used <= set(re.findall(r"(--[a-z]+):", scheme)), scheme


async def test_a_report_of_nothing_says_so(database_url: str, tmp_path: Path) -> None:
    done = await asyncio.to_thread(handoff, "report", "--out", str(tmp_path / "r.html"), database_url=database_url)
    assert (done.returncode, done.stderr) == (0, "")
    text = Page((tmp_path / "r.html").read_text()).text
    assert "No alert fired" in text
    assert "Nothing in these figures asks for a change." in text
    assert "Nothing: no session" in text


def test_what_is_wrong_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(since: str = "7d", **environment: str) -> str:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert report_command(Namespace(since=since, out=tmp_path / "none" / "r.html")) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    for since in ("7", "0d", "400d", "d", "-1d", "1m", "9999999999d", ""):
        assert "--since must be a number of hours, days or weeks" in refused(since)
    assert "HANDOFF_DATABASE_URL is not set" in refused()
    monkeypatch.setenv("HANDOFF_DATABASE_URL", "postgresql://localhost:1/handoff")
    with pytest.raises(SystemExit):
        refused()
    assert "The database does not answer: " in capsys.readouterr().err


def test_a_database_without_our_tables_refuses_in_one_sentence(empty_database_url: str, tmp_path: Path) -> None:
    done = handoff("report", "--out", str(tmp_path / "r.html"), database_url=empty_database_url)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"handoff: The database refused: relation .* does not exist\. .*\n", done.stderr), done.stderr
