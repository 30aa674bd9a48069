"""`handoff backtest`: what the detector would have said of the past of metrics, read from CSV files or from our history."""

import csv
import sys
from argparse import Namespace
from collections.abc import Iterator
from datetime import UTC, datetime, tzinfo
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo

if TYPE_CHECKING:  # numpy is loaded by this command only
    from handoff.analytics.findings import Finding
    from handoff.analytics.replay import Replay

POINTS_MIN: Final = 2  # between fewer there is no step
POINTS_MAX: Final = 2_000_000
_WEEK_S: Final = 7 * 86_400
_NOTHING: Final = frozenset({"", "nan", "null", "none"})


class Unreadable(Exception):
    """The file does not hold what it should; the message says where, and what is wanted."""


def backtest_command(arguments: Namespace) -> int:
    """Print what would have been told, and how often that is; with --html, write a page with a plot of each series."""
    if not arguments.file:
        if arguments.html is not None or arguments.sensitivity != 1:
            print("--html and --sensitivity go with files. Leave them out, or name a CSV file.", file=sys.stderr)
            return 2
        from handoff.cli.backtest_history import history_command

        return history_command(arguments)
    if used := [name for name in ("since", "series", "promql", "prometheus") if getattr(arguments, name) is not None]:
        print(f"--{used[0]} does not go with a file: a file is judged whole. Leave one of them out.", file=sys.stderr)
        return 2
    if arguments.html is not None and (find_spec("matplotlib") is None or find_spec("jinja2") is None):
        print("--html needs the extra `report`: pip install 'handoff-observatory[report]'", file=sys.stderr)
        return 2
    try:
        zone = zone_of(arguments.timezone)
        told = [_judged(file, zone, arguments) for file in arguments.file]
        if arguments.html is not None:
            from handoff.cli.backtest_page import Series, page

            series = [Series(file.stem, said, found) for file, (said, found) in zip(arguments.file, told, strict=True)]
            arguments.html.write_text(page(series, arguments.sensitivity, zone), encoding="utf-8")
    except (Unreadable, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _judged(file: Path, zone: tzinfo, arguments: Namespace) -> tuple[str, "Replay"]:
    """Replay a file and print what would have been told. Returns what the series is, in a sentence, and the replay."""
    points = list(_points(file, zone))
    if len(points) < POINTS_MIN:
        raise Unreadable(f"{file} has {len(points)} points; at least 2 are needed, and 41 before anything is said.")
    import numpy as np

    from handoff.analytics.kinds import Absence, Kind, level_of, season_of
    from handoff.analytics.replay import replay

    t = np.array([int(at.timestamp()) for at, _ in points], np.int64)
    local_s = np.array([int((at.utcoffset() or at - at).total_seconds()) for at, _ in points], np.int64)
    values = np.array([value for _, value in points], np.float64)
    x = level_of(Kind(arguments.kind), Absence(arguments.absence), t, values)
    found = replay(t, x, local_s, file.stem)
    season = season_of(t + local_s, x)
    said = (
        f"{len(points):,} points from {points[0][0]:%Y-%m-%d %H:%M} to {points[-1][0]:%Y-%m-%d %H:%M %Z}, "
        f"judged every {found.step_s:,.0f} s; {'no cycle' if season == 'none' else f'a cycle of a {season}'} was found."
    )
    print(f"{file}: {said}")
    _print(found.alerts(arguments.sensitivity), arguments.sensitivity, zone, (t[-1] - t[0]) / _WEEK_S)
    return said, found


def _print(alerts: "tuple[tuple[int, Finding], ...]", sensitivity: float, zone: tzinfo, weeks: float) -> None:
    for at, it in alerts:
        print(
            f"{datetime.fromtimestamp(at, zone):%Y-%m-%d %H:%M %Z}  strength {it.strength * sensitivity:.1f}  "
            f"confidence {it.confidence:.0%}  {it.sentence}"
        )
    count = len(alerts)
    rate = f", {count / weeks:.1f} per week" if weeks >= 1 else ""
    print(f"{count} {'alert' if count == 1 else 'alerts'}{rate}. Nothing is said about the first 40 points.")


def zone_of(name: str) -> tzinfo:
    """The time zone of this name. Raises Unreadable."""
    try:
        return UTC if name == "UTC" else ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise Unreadable(f"There is no time zone {name!r}. Name one as in Europe/Berlin.") from error


def _points(file: Path, zone: tzinfo) -> Iterator[tuple[datetime, float]]:
    """The points of a file, in order. A first line that is no point is a heading."""
    before: datetime | None = None
    with file.open(newline="", encoding="utf-8-sig") as lines:
        for number, row in enumerate(csv.reader(lines), start=1):
            if not row or (number == 1 and not _is_point(row)):
                continue
            if number > POINTS_MAX:
                raise Unreadable(f"{file} has more than {POINTS_MAX:,} lines. Split it.")
            try:
                at, value = _time(row[0], zone), _number(row[1])
            except (ValueError, IndexError, OverflowError) as error:
                raise Unreadable(
                    f"{file}, line {number}: wanted a time (seconds since 1970, or ISO 8601), a comma and a number."
                ) from error
            if before is not None and at <= before:
                raise Unreadable(
                    f"{file}, line {number}: its time is not after that of the line before. Sort the file by time."
                )
            before = at
            yield at, value


def _is_point(row: list[str]) -> bool:
    try:
        _time(row[0], UTC)
    except (ValueError, OverflowError):
        return False
    return True


def _time(text: str, zone: tzinfo) -> datetime:
    text = text.strip()
    try:
        return datetime.fromtimestamp(float(text), zone)
    except (ValueError, OSError):
        at = datetime.fromisoformat(text)
    return at.replace(tzinfo=zone) if at.tzinfo is None else at.astimezone(zone)


def _number(text: str) -> float:
    """The number; NaN where nothing was measured."""
    return float("nan") if text.strip().lower() in _NOTHING else float(text)
