"""`handoff backtest`: what the detector would have said of the past of metrics, read from CSV files or from our history."""

import csv
import math
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from zoneinfo import ZoneInfo

from handoff.cli.page_file import written
from handoff.cli.start import fail
from handoff.encoding import counted

if TYPE_CHECKING:  # numpy is loaded by this command only
    from handoff.analytics.columns import Double, Index
    from handoff.analytics.findings import Finding
    from handoff.analytics.kinds import Kind
    from handoff.analytics.replay import Replay

POINTS_MIN: Final = 2  # between fewer there is no step
POINTS_MAX: Final = 2_000_000
_WEEK_S: Final = 7 * 86_400
_NOTHING: Final = frozenset({"", "nan", "null", "none"})
_TIME_NAMES: Final = frozenset({"time", "timestamp", "date", "datetime", "at", "ts"})  # in a heading


class Unreadable(Exception):
    """The file does not hold what it should; the message says where, and what is wanted."""


class Judged(NamedTuple):
    """A series that was replayed, and the sentence that says what it is."""

    name: str
    said: str
    found: "Replay"


def backtest_command(arguments: Namespace) -> int:
    """Print what would have been told, and how often that is; with --html, write a page with a plot of each series."""
    of_history = [name for name in ("since", "series", "promql", "prometheus") if getattr(arguments, name) is not None]
    if arguments.file and of_history:
        return fail(f"--{of_history[0]} does not go with a file: a file is judged whole. Leave one of them out.")
    if arguments.html is not None and (find_spec("matplotlib") is None or find_spec("jinja2") is None):
        return fail("--html needs the extra `report`: pip install 'handoff-observatory[report]'")
    try:
        zone = zone_of(arguments.timezone)
        if arguments.file:
            shown, count = [_of_file(file, zone, arguments) for file in arguments.file], len(arguments.file)
        else:
            from handoff.cli.backtest_history import of_history as judge_history

            shown, count = judge_history(arguments, zone)
    except Unreadable as error:
        return fail(str(error))
    if arguments.html is not None:
        from handoff.cli.backtest_page import page

        return written(arguments.html, page(shown, arguments.sensitivity, zone, count - len(shown)))
    return 0


def judged(
    t: "Index", x: "Double", zone: tzinfo, names: "Sequence[str]", kinds: "Sequence[Kind]", *, local: bool = True
) -> list[Judged]:
    """Replay series of levels (points, series) that share their times. Days are the time zone's if `local`, or UTC's."""
    import numpy as np

    from handoff.analytics.kinds import season_of
    from handoff.analytics.replay import replay

    began, ended = (datetime.fromtimestamp(int(at), zone) for at in t[[0, -1]])
    offsets = [(datetime.fromtimestamp(at, zone).utcoffset() if local else None) or timedelta() for at in t.tolist()]
    local_s = np.array([int(it.total_seconds()) for it in offsets], np.int64)
    series: list[Judged] = []
    for name, levels, found in zip(names, x.T, replay(t, x, local_s, names, kinds), strict=True):
        season = season_of(t + local_s, levels)
        said = (
            f"{np.isfinite(levels).sum():,} points from {began:%Y-%m-%d %H:%M} to {ended:%Y-%m-%d %H:%M %Z}, "
            f"judged every {found.step_s:,.0f} s; {'no cycle' if season == 'none' else f'a cycle of a {season}'} was found."
        )
        series.append(Judged(name, said, found))
    return series


def _of_file(file: Path, zone: tzinfo, arguments: Namespace) -> Judged:
    """Replay a file, and print what would have been told."""
    points = list(_points(file, zone))
    if (known := sum(math.isfinite(value) for _, value in points)) < POINTS_MIN:
        raise Unreadable(f"{file} has fewer than 2 points with a value: {known}. The first alert is possible at the 41st.")
    import numpy as np

    from handoff.analytics.kinds import Absence, Kind, level_of

    t = np.array([int(at.timestamp()) for at, _ in points], np.int64)
    kind = Kind(arguments.kind)
    x = level_of(kind, Absence(arguments.absence), t, np.array([value for _, value in points], np.float64))
    (series,) = judged(t, x[:, np.newaxis], zone, [file.stem], [kind])
    print(f"{file}: {series.said}")
    alerts = series.found.alerts(arguments.sensitivity)
    print_alerts(alerts, arguments.sensitivity, zone)
    print(f"{rate_of(len(alerts), float(t[-1] - t[0]))}. Nothing is said about the first 40 points.")
    return series


def print_alerts(alerts: "Iterable[tuple[int, Finding]]", sensitivity: float, zone: tzinfo) -> None:
    """Print each alert with its time, on a line."""
    for at, it in alerts:
        print(
            f"{datetime.fromtimestamp(at, zone):%Y-%m-%d %H:%M %Z}  strength {it.strength * sensitivity:.1f}  "
            f"confidence {it.confidence:.0%}  {it.sentence}"
        )


def rate_of(alerts: int, span_s: float) -> str:
    """How many alerts there are and, from a week on, how many per week."""
    per_week = f", {alerts * _WEEK_S / span_s:.1f} per week" if span_s >= _WEEK_S else ""
    return f"{counted(alerts, 'alert')}{per_week}"


def zone_of(name: str) -> tzinfo:
    """The time zone of this name. Raises Unreadable."""
    try:
        return UTC if name == "UTC" else ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise Unreadable(f"There is no time zone {name!r}. Name one as in Europe/Berlin.") from error


def _points(file: Path, zone: tzinfo) -> Iterator[tuple[datetime, float]]:
    """The points of a file, in order. A first line that is no point is a heading."""
    before_s = -math.inf
    for number, row in enumerate(_lines(file), start=1):
        if number == 1 and row and not _is_point(row):
            _check_heading(file, row)
            continue
        if not row:
            continue
        if number > POINTS_MAX:
            raise Unreadable(f"{file} has more than {POINTS_MAX:,} lines. Split it.")
        try:
            at, value = _time(row[0], zone, before_s), _number(row[1])
        except (ValueError, IndexError, OverflowError) as error:
            raise Unreadable(
                f"{file}, line {number}: wanted a time (seconds since 1970, or ISO 8601), a comma and a number."
            ) from error
        # In seconds: Python compares two times of one zone by what its clocks show, and they show an hour twice each autumn.
        if at.timestamp() <= before_s:
            raise Unreadable(f"{file}, line {number}: its time is not after that of the line before. Sort the file by time.")
        before_s = at.timestamp()
        yield at, value


def _lines(file: Path) -> Iterator[list[str]]:
    """The lines of a CSV file. Raises Unreadable if it can't be read, or is no such file."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            yield from csv.reader(lines)
    except OSError as error:
        raise Unreadable(f"{file} can't be read: {error.strerror or error}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise Unreadable(f"{file} is no CSV file in UTF-8: {error}.") from error


def _check_heading(file: Path, names: Sequence[str]) -> None:
    """Refuse a file whose times are not in the first column, as far as its heading says: they might be taken for values."""
    are_times = [name.strip().lower() in _TIME_NAMES for name in names]
    if any(are_times) and not are_times[0]:
        wanted = f"{names[are_times.index(True)].strip()!r} is its column {are_times.index(True) + 1}"
        raise Unreadable(f"{file}, line 1: {wanted}. The first column must be the time, and the second the value.")


def _is_point(row: list[str]) -> bool:
    try:
        _time(row[0], UTC)
    except (ValueError, OverflowError):
        return False
    return True


def _time(text: str, zone: tzinfo, after_s: float = -math.inf) -> datetime:
    """The time. One that the clocks of the zone show twice is the second if the first is not after `after_s`."""
    text = text.strip()
    try:
        return datetime.fromtimestamp(float(text), zone)
    except (ValueError, OSError):
        at = datetime.fromisoformat(text)
    if at.tzinfo is not None:
        return at.astimezone(zone)
    first = at.replace(tzinfo=zone)
    return first if first.timestamp() > after_s else first.replace(fold=1)


def _number(text: str) -> float:
    """The number; NaN where nothing was measured."""
    return math.nan if text.strip().lower() in _NOTHING else float(text)
