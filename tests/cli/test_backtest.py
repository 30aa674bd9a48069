"""`handoff backtest` says of a metric's past what the detector would have told, and of a file that it can't read why."""

import math
import random
import re
import subprocess
from pathlib import Path

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
        ("1,1\n", "has 1 points"),
        ("", "has 0 points"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_the_line(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "wrong.csv"
    file.write_text(text)
    code, said, complaint = backtest(str(file))
    assert (code, said, says in complaint) == (2, "", True), complaint


def test_a_missing_file_and_an_unknown_time_zone_are_named(tmp_path: Path) -> None:
    assert "nowhere.csv" in backtest(str(tmp_path / "nowhere.csv"))[2]
    assert "There is no time zone 'Mars'" in backtest(str(metric(tmp_path, 1)), "--timezone", "Mars")[2]


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
    assert not re.search("#00000[0-9]", page)  # each colour is the page's
    assert "var(--band)" in page
    row = r'<tr( class="chosen")?><td class="number">([0-9.]+)</td><td class="number">(\d+)<'
    counts = [(bool(chosen), level, int(count)) for chosen, level, count in re.findall(row, page.split("</section>")[0])]
    assert [it[:2] for it in counts] == [(level == "2", level) for level in ("0.5", "0.7", "1", "1.4", "2")]
    assert sorted(told := [it[2] for it in counts]) == told
    assert told[0] < told[-1] <= len(alerts)
    assert page.count('<td class="time">') == len(alerts)
    assert alerts[0].rpartition("  ")[2].split(" is ")[1] in page


def test_a_sensitivity_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    assert "must be from 0.1 to 10" in backtest(str(tmp_path / "any.csv"), "--sensitivity", "11")[2]


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
