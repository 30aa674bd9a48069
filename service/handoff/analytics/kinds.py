"""What kind of number a series is, what it means that a point is missing, and how its day and week look.

The detector takes levels. These functions make levels of the other kinds, so that an unusual value means the same for all.
"""

from enum import StrEnum
from typing import Final

import numpy as np

from handoff.analytics.columns import Double, Flags, Index

RATIO_PRIOR: Final = 10.0  # events: with fewer than that a share is drawn towards the share so far
SILENT_AFTER: Final = 4  # steps without a point
_DAY_S: Final = 86_400
_HOUR_S: Final = 3_600
_CYCLES_MIN: Final = 2  # two days before a day is believed, two weeks before a week
_EXPLAINED_MIN: Final = 0.3  # of the variance, by the season
_WEEK_GAIN_MIN: Final = 0.1  # more than by the day alone
_EPOCH_WEEKDAY_S: Final = 4 * _DAY_S  # 1970 began on a Thursday; weeks begin on Sundays here


class Kind(StrEnum):
    """How the values of a series come about."""

    COUNTER = "counter"  # only rises, and begins again at 0 when its process restarts
    RATIO = "ratio"  # some of so many
    COUNT = "count"  # events per point, often none
    DURATION = "duration"  # seconds, or a size: twice as much is as far from usual as half as much
    LEVEL = "level"


class Absence(StrEnum):
    """What it means that nothing was measured."""

    ZERO = "zero"  # nothing happened
    GAP = "gap"  # nobody looked
    ALERT = "alert"  # something that has to report does not


class Season(StrEnum):
    """Which cycle a series follows."""

    NONE = "none"
    DAY = "day"
    WEEK = "week"


def rate(t: Index, total: Double, last: float = np.nan, last_t: float = np.nan) -> Double:
    """Increase of a counter per second, from the measured point before. A fall is a restart at 0.

    `last` at the time `last_t` is the point before the first one; without it, the first has no rate and is NaN.
    """
    out = np.full(len(t), np.nan)
    at = np.nonzero(np.isfinite(total))[0]
    values, times = np.concatenate(([last], total[at])), np.concatenate(([last_t], t[at]))
    rise = np.diff(values)
    out[at] = np.where(rise < 0, values[1:], rise) / np.maximum(np.diff(times), 1)
    return out


def ratio(numerator: Double, denominator: Double, some_before: float = 0, of_before: float = 0) -> Double:
    """The share of each point, drawn towards the share of all points before it where there were few events; NaN for none.

    This is the mean of a beta distribution whose prior is the past: 1 of 1 is no reason to wake anybody. `some_before` of
    `of_before` is the past before the first point.
    """
    measured = np.isfinite(numerator) & np.isfinite(denominator) & (denominator > 0)
    some, of = np.where(measured, numerator, 0), np.where(measured, denominator, 0)
    # The sum goes on from the one before, term by term: pieces of a series then give the same bits as the whole.
    sum_some = np.cumsum(np.concatenate(([some_before], some)))[:-1]
    sum_of = np.cumsum(np.concatenate(([of_before], of)))[:-1]
    before = (sum_some + 0.5) / (sum_of + 1)
    return np.where(measured, (some + RATIO_PRIOR * before) / (of + RATIO_PRIOR), np.nan)


def duration(seconds: Double) -> Double:
    """The natural logarithm of a duration; NaN where it is not above 0."""
    return np.log(seconds, out=np.full(len(seconds), np.nan), where=seconds > 0)


def level_of(kind: Kind, absence: Absence, t: Index, values: Double, denominator: Double | None = None) -> Double:
    """The values of a series as levels. Where nothing happened, a ratio or a duration has no value, whatever absence means.

    Raises:
        ValueError: a ratio came without its denominator.
    """
    if kind is Kind.RATIO:
        if denominator is None:
            raise ValueError("A ratio needs its denominator: how many there were of which the values are a part.")
        return ratio(values, denominator)
    if kind is Kind.DURATION:
        return duration(values)
    level = rate(t, values) if kind is Kind.COUNTER else values
    return np.where(np.isnan(level), 0.0, level) if absence is Absence.ZERO else level


def silent(absence: Absence, silent_s: Double, step_s: Double | float) -> Flags:
    """Which silences are alerts; `silent_s` is how long nobody has measured anything, from the first missing step on."""
    return np.full(len(silent_s), absence is Absence.ALERT) & (silent_s >= SILENT_AFTER * step_s)


def season_of(t: Index, x: Double) -> Season:
    """Guess the cycle from hourly means: the one that explains enough of the variance of the points that follow it.

    A mean of all other cycles predicts each cycle, so that noise explains nothing, however short the history.
    """
    measured = np.isfinite(x)
    if not measured.any():
        return Season.NONE
    hours = t[measured] // _HOUR_S
    span_s = int(t[measured][-1] - t[measured][0]) + _HOUR_S
    unique, place = np.unique(hours, return_inverse=True)
    means = np.bincount(place, x[measured]) / np.bincount(place)
    day = _explained(means, unique % 24) if span_s >= _CYCLES_MIN * _DAY_S else 0.0
    week = _explained(means, (unique + _EPOCH_WEEKDAY_S // _HOUR_S) % 168) if span_s >= _CYCLES_MIN * 7 * _DAY_S else 0.0
    if week >= max(_EXPLAINED_MIN, day + _WEEK_GAIN_MIN):
        return Season.WEEK
    return Season.DAY if day >= _EXPLAINED_MIN else Season.NONE


def _explained(means: Double, phase: Index) -> float:
    """The share of the variance that the mean of the other hours of the same phase explains."""
    sums, counts = np.bincount(phase, means), np.bincount(phase)
    others = counts[phase] - 1
    if not (others > 0).any():
        return 0.0
    predicted = (sums[phase] - means)[others > 0] / others[others > 0]
    actual = means[others > 0]
    variance = float(np.var(actual))
    return 1 - float(np.mean((actual - predicted) ** 2)) / variance if variance > 0 else 0.0
