"""Series that go on: the minutes that have come since the detector's state was kept, judged where it stopped.

What a series needs to turn its values into levels, beside the detector's state, is carried from one call to the next:
the sums of a ratio so far, the last total of a counter, and when something was measured last.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from handoff.analytics.columns import Double, Flags, Index
from handoff.analytics.findings import ABSENT_STRENGTH, Finding, absent, explain, in_units
from handoff.analytics.kinds import SILENT_AFTER, Absence, Kind, level_of, rate, ratio, silent
from handoff.analytics.profile import bin_of, bins_per_day
from handoff.analytics.state import VERSION, pack, unpack

__all__ = ["VERSION", "Found", "Series", "Watch", "go_on"]

STEP_S: Final = 60
_DAY_S: Final = 86_400
_ABSENT_S_MAX: Final = 3 * _DAY_S  # then an absence is accepted, as a new level is
_ALWAYS: Final = (-np.inf, np.inf)
_GAP_STEPS: Final = 3.5
NOTHING_CARRIED: Final = (np.nan, np.nan, np.nan)


@dataclass(frozen=True, slots=True)
class Series:
    """A series as it was left: `state` is b"" if nothing is known of it; `carried` are `some`, `of` and `measured_at`."""

    name: str
    kind: Kind
    absence: Absence
    state: bytes = b""
    carried: tuple[float, float, float] = NOTHING_CARRIED
    told_at: float = 1.0  # the strength from which a finding is told
    looked: tuple[float, float] = _ALWAYS  # between these times somebody looked for points: elsewhere absence says nothing


@dataclass(frozen=True, slots=True)
class Found:
    """A finding about a series (its place among those given) in the minute that begins at `t`.

    `seen` is how many points of it were measured until then.
    """

    place: int
    t: int
    seen: int
    finding: Finding


@dataclass(frozen=True, slots=True)
class Band:
    """A minute of a series: its value, what was expected, and the band that is usual.

    NaN where nothing was measured; the last three while the series is too young.
    """

    value: float
    expected: float
    lower: float
    upper: float


@dataclass(frozen=True, slots=True)
class Watch:
    """What was found, the last minute of each series, and where each stands now."""

    found: list[Found]
    bands: list[Band]
    states: list[bytes]
    carried: list[tuple[float, float, float]]


def go_on(series: Sequence[Series], first: int, values: Double, of: Double, budget: float = 1.0) -> Watch:
    """Judge minutes, one at least.

    Args:
        series: as they stand before the first minute.
        first: when the first minute begins, in seconds since 1970 (UTC).
        values: (minutes, series), NaN where nothing was measured.
        of: the same for the denominators of ratios.
        budget: how many alerts there may be, as a multiple of the usual.

    Raises:
        ValueError: a state is of another version.
    """
    minutes = len(values)
    t = first + STEP_S * np.arange(minutes)
    levels, gaps, carried = _levels(series, t, values, of)
    steps = np.full(len(series), float(STEP_S))
    detector = unpack([it.state for it in series], steps, np.array([it.kind is Kind.COUNT for it in series], np.bool_))
    detector.budget = budget
    per_day = bins_per_day(steps)
    told_at = np.array([it.told_at for it in series])
    found: list[Found] = []
    usual = np.full((3, len(series)), np.nan)
    for number in range(minutes):
        bins = bin_of(np.full(len(series), t[number] % _DAY_S), per_day)
        if number == minutes - 1:
            usual = np.stack(detector.usual(bins))
        verdict = detector.step(levels[number], bins, gaps[number])
        for place in np.flatnonzero(verdict.strength >= told_at).tolist():
            finding = explain(verdict, place, float(levels[number, place]), series[place].name, series[place].kind)
            found.append(Found(place, int(t[number]), int(verdict.seen[place]), finding))
    for place, it in enumerate(series):
        if it.absence is Absence.ALERT and it.told_at <= ABSENT_STRENGTH:
            seen = int(detector.memory.scale.seen[place])
            found += [Found(place, at, seen, absent(it.name, since)) for at, since in _silences(it, t, levels[:, place])]
    last = np.vstack((levels[-1:], usual)).T.tolist()
    bands = [Band(*in_units(it, one.kind)) for it, one in zip(last, series, strict=True)]
    return Watch(found, bands, pack(detector), carried)


def _silences(series: Series, t: Index, levels: Double) -> list[tuple[int, int]]:
    """The silences that are told by now: when each was long enough to be told, and its first minute.

    Both depend only on the point before it, so that a silence that goes on is found again as the same.
    """
    measured = t[np.isfinite(levels)]
    first = np.concatenate(([series.carried[2]], measured)) + STEP_S  # NaN: nothing was ever measured
    end = np.concatenate((measured, [t[-1] + STEP_S]))
    looked_s = np.minimum(end, series.looked[1]) - np.maximum(first, series.looked[0])
    told = silent(series.absence, looked_s, float(STEP_S)) & (end - first < _ABSENT_S_MAX)
    return [(int(it) + (SILENT_AFTER - 1) * STEP_S, int(it)) for it in first[told]]


def _levels(
    series: Sequence[Series], t: Index, values: Double, of: Double
) -> tuple[Double, Flags, list[tuple[float, float, float]]]:
    """The values as levels, where points are missing before them, and what is carried on."""
    levels, gaps = np.empty(values.shape), np.zeros(values.shape, np.bool_)
    carried: list[tuple[float, float, float]] = []
    for place, it in enumerate(series):
        some, total, measured_at = it.carried
        column = values[:, place]
        match it.kind:
            case Kind.RATIO:
                some, total = np.nan_to_num(some), np.nan_to_num(total)
                levels[:, place] = ratio(column, of[:, place], some, total)
                known = np.isfinite(levels[:, place])
                some, total = _sum(some, column[known]), _sum(total, of[known, place])
            case Kind.COUNTER:
                levels[:, place] = rate(t, column, some, measured_at)
                if it.absence is Absence.ZERO:
                    levels[:, place] = np.nan_to_num(levels[:, place], nan=0.0)
                known = np.isfinite(column)
                some = float(column[known][-1]) if known.any() else some
            case _:
                levels[:, place] = level_of(it.kind, it.absence, t, column)
                known = np.isfinite(levels[:, place])
        at = t[known]
        before = np.concatenate(([measured_at], at[:-1])) if len(at) else np.zeros(0)
        gaps[known, place] = at - before > _GAP_STEPS * STEP_S  # False after NaN: nothing was measured before
        carried.append((float(some), float(total), float(at[-1]) if len(at) else measured_at))
    return levels, gaps, carried


def _sum(before: float, terms: Double) -> float:
    return float(np.cumsum(np.concatenate(([before], terms)))[-1])
