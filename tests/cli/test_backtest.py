"""`handoff backtest` says of a metric's past what the detector would have told, and of a file that it can't read why."""

import math
import random
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from handoff.cli import backtest as command
from handoff.cli.band_chart import COLUMNS, reduced
from handoff.cli.parser import parser
from tests.processes import HANDOFF

BEGIN = 1_764_547_200  # 2025-12-01 in UTC


def metric(folder: Path, days: int, *, step_s: int = 300, trouble_at_day: float | None = None) -> Path:
    """Write a metric with a daily cycle and, for an hour, an incident."""
    chance, file, per_day = random.Random(3), folder / "requests.csv", 86_400 // step_s  # noqa: S311 - noise
    lines = ["time,value"]
    for number in range(days * per_day):
        value = 100 + 40 * math.sin(2 * math.pi * number / per_day) + chance.gauss(0, 3)
        if trouble_at_day is not None and 0 <= number - trouble_at_day * per_day < per_day / 24:
            value += 120
        lines.append(f"{BEGIN + step_s * number},{value:.2f}")
    file.write_text("\n".join(lines))
    return file


def backtest(*arguments: str) -> tuple[int, str, str]:
    done = subprocess.run([HANDOFF, "backtest", *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_an_incident_is_told_with_its_time_and_reasons_and_a_quiet_past_with_nothing(tmp_path: Path) -> None:
    code, said, _ = backtest(str(metric(tmp_path, 5, trouble_at_day=3.5)), "--timezone", "Asia/Tokyo")
    first, *alerts, last = said.splitlines()
    assert (code, "a cycle of a day" in first, "every 300 s" in first) == (0, True, True)
    assert alerts
    assert all(line.startswith("2025-12-04 21:") for line in alerts), said  # noon in UTC
    assert "was expected" in alerts[0]
    assert last.startswith(f"{len(alerts)} alert")

    code, said, _ = backtest(str(metric(tmp_path, 5)))
    assert (code, said.splitlines()[-1].split(".")[0]) == (0, "0 alerts")


def test_points_that_come_every_15_seconds_are_judged_every_minute(tmp_path: Path) -> None:
    code, said, _ = backtest(str(metric(tmp_path, 2, step_s=15, trouble_at_day=1.5)))
    assert (code, "judged every 60 s" in said) == (0, True)
    assert "2025-12-02 12:" in said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("time,value\n1,1\n2,x\n", "line 3: wanted a time"),
        ("1,1\n2\n", "line 2: wanted a time"),
        ("2,1\n1,1\n", "line 2: its time is not after"),
        ("1,1\n", "has fewer than 2 points with a value: 1."),
        ("", "has fewer than 2 points with a value: 0."),
        ("time,value\n1,nan\n2,NaN\n3,\n4,1\n", "has fewer than 2 points with a value: 1."),
        ("1,1\n1,2\n", "line 2: its time is not after"),
        ("nan,1\n2,1\n3,x\n", "line 3: wanted a time"),
        ("value, Timestamp\n1,10\n2,20\n", "line 1: 'Timestamp' is its column 2. The first column must be the time"),
        ("1,1\n2,\ud800\n", "is no CSV file in UTF-8"),
        (f'1,1\n2,"{"x" * 200_000}"\n', "is no CSV file in UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_the_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    file = tmp_path / "wrong.csv"
    file.write_text(text, errors="surrogatepass")
    code, (said, complaint) = command.backtest_command(parser().parse_args(["backtest", str(file)])), capsys.readouterr()
    assert (code, said, says in complaint, complaint.count("\n")) == (2, "", True, 1), complaint


def test_files_that_cannot_be_opened_and_an_unknown_time_zone_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: str) -> str:
        assert command.backtest_command(parser().parse_args(["backtest", *arguments])) == 2
        return capsys.readouterr().err

    nowhere, file = tmp_path / "nowhere", str(metric(tmp_path, 1, step_s=1_800))
    assert refused(str(nowhere)) == f"handoff: {nowhere} can't be read: No such file or directory.\n"
    said = refused(file, "--html", str(nowhere / "out.html"))
    assert said == f"handoff: {nowhere / 'out.html'} can't be written: No such file or directory.\n"
    assert "There is no time zone 'Mars'" in refused(file, "--timezone", "Mars")


def test_the_hour_that_clocks_show_twice_in_autumn_is_two_hours(tmp_path: Path) -> None:
    zone, file = ZoneInfo("Europe/Berlin"), tmp_path / "autumn.csv"
    first = int(datetime(2026, 10, 24, 22, tzinfo=UTC).timestamp())  # midnight in Berlin; at 3 it is 2 again
    times = [datetime.fromtimestamp(at, zone) for at in range(first, first + 6 * 3_600, 900)]
    for form in ("%s", "%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%dT%H:%M:%S"):
        file.write_text("".join(f"{int(at.timestamp()) if form == '%s' else at.strftime(form)},1\n" for at in times))
        read = list(command._points(file, zone))
        assert [at.timestamp() for at, _ in read] == [at.timestamp() for at in times], form


def test_the_page_has_a_chart_of_each_series_and_its_alerts_at_several_sensitivities(tmp_path: Path) -> None:
    hostile = tmp_path / "<script>alert(1)<"
    hostile.mkdir()
    file = metric(hostile, 5, trouble_at_day=3.5).rename(tmp_path / '<b onload="x">&$y$.csv')
    out = tmp_path / "out.html"
    code, said, complaint = backtest(str(file), str(metric(tmp_path, 2)), "--html", str(out), "--sensitivity", "2")
    assert (code, complaint) == (0, "")
    alerts = [line for line in said.splitlines() if "strength" in line]
    page = out.read_text()
    assert (page.count("<svg"), page.count("</svg>"), page.count("<h2>")) == (2, 2, 2)
    assert "<h2>&lt;b onload=&#34;x&#34;&gt;&amp;$y$</h2>" in page
    assert "<b " not in page
    assert not re.search(r"<script|src=|url\((?!#)|https?://(?!www\.w3\.org/)", page)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids)) > 0
    for chart in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        assert set(re.findall("#[0-9a-f]{6}", chart)) <= {"#ffffff"}, "each colour is the page's"
    assert "var(--band)" in page
    row = r'<tr( class="chosen")?><td class="number">([0-9.]+)</td><td class="number">(\d+)<'
    counts = [(bool(chosen), level, int(count)) for chosen, level, count in re.findall(row, page.split("</section>")[0])]
    assert [it[:2] for it in counts] == [(level == "2", level) for level in ("0.5", "0.7", "1", "1.4", "2")]
    assert sorted(told := [it[2] for it in counts]) == told
    assert told[0] < told[-1] <= len(alerts)
    assert page.count('<td class="time">') == len(alerts)
    assert alerts[0].rpartition("  ")[2].split(" is ")[1] in page


@pytest.mark.parametrize("sensitivity", ["11", "nan", "high"])
def test_a_sensitivity_that_makes_no_sense_is_refused(sensitivity: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["backtest", "any.csv", "--sensitivity", sensitivity])
    assert "must be a number from 0.1 to 10" in capsys.readouterr().err


def test_an_address_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["backtest", "--promql", "up", "--prometheus", "localhost:9090"])
    assert "must begin with http:// or https://" in capsys.readouterr().err


def test_without_the_extra_a_page_is_refused_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(_: str) -> None:
        return None

    monkeypatch.setattr(command, "find_spec", missing)
    assert command.backtest_command(parser().parse_args(["backtest", "x.csv", "--html", str(tmp_path / "out.html")])) == 2
    assert "pip install 'handoff-observatory[report]'" in capsys.readouterr().err


def test_a_chart_of_many_points_keeps_each_peak_and_each_gap() -> None:
    t = np.arange(100_000)
    x = np.zeros(100_000)
    x[77_777], x[20_000:30_000] = 9.0, np.nan
    at, low, high = reduced(t, x)
    assert len(at) == COLUMNS
    assert (high.max(initial=0, where=np.isfinite(high)), np.isnan(low).sum()) == (9.0, pytest.approx(120, abs=2))
