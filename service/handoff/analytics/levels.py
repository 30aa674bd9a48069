"""Running levels: means of the value and of its residual over minutes, hours and days, and how much they usually differ.

All are exponentially weighted, so each is one number. Their rates are per point: for the five-minute points that the product
feeds, 12 is an hour, 144 twelve hours, 576 two days.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from handoff.analytics.columns import Columns, Flags, Single, column

SHORT, LONG, SHORTER_DAYS, LONGER_DAYS, SLOW, FAST = range(6)
_MEAN_RATES: Final = np.array([[1 / 12], [1 / 144], [1 / 48], [1 / 576], [1 / 24], [0.3]], np.float32)
HOURS, DAYS, RESIDUAL, NOISE, LONG_NOISE = range(5)
_SQUARE_RATES: Final = np.array([[1 / 288], [1 / 1152], [1 / 288], [1 / 24], [1 / 576]], np.float32)
_RESIDUAL_RATES: Final = np.array([[1 / 12], [1 / 576]], np.float32)
FURTHER: Final = np.float32(0.02)  # of the slow mean's range, in a point: less is no movement
_BOUND: Final = 25.0  # times the mean square: larger ones move it no further
_UNBOUNDED_POINTS: Final = (
    20  # until then it is only being found out; so it is while it is 0, as residuals are on the first day
)


@dataclass(slots=True)
class Levels(Columns):
    """In the series' unit; squares in its square."""

    last: Single = column("single", unit=1)
    previous: Single = column("single", unit=1)
    lowest: Single = column("single", unit=1)
    highest: Single = column("single", unit=1)
    slow_lowest: Single = column("single", unit=1)  # the range of the slow mean
    slow_highest: Single = column("single", unit=1)
    usual_lowest: Single = column("single", unit=1)  # the range of what was not unusual
    usual_highest: Single = column("single", unit=1)
    means: Single = column("single", 6, unit=1)
    residuals: Single = column("single", 2, unit=1)  # means of the bounded seasonal residual, over an hour and two days
    squares: Single = column("single", 5, unit=2)


def start(levels: Levels, x: Single, first: Flags) -> None:
    """Set everything to the first value of these series."""
    if first.any():
        for values in (
            levels.last,
            levels.previous,
            levels.lowest,
            levels.highest,
            levels.slow_lowest,
            levels.slow_highest,
            levels.usual_lowest,
            levels.usual_highest,
        ):
            values[first] = x[first]
        levels.means[:, first] = x[first]


def bridge(levels: Levels, x: Single, gap: Flags) -> None:
    """Forget what is short-lived where a gap ends, so that the gap itself is no change."""
    at = np.nonzero(gap)[0]
    if len(at):
        levels.last[at] = levels.previous[at] = levels.means[FAST, at] = x[at]
        levels.means[SHORT, at] = levels.means[LONG, at]
        levels.means[SHORTER_DAYS, at] = levels.means[LONGER_DAYS, at]
        levels.residuals[0, at] = levels.residuals[1, at]
        levels.means[SLOW, at] = np.clip(levels.means[LONG, at], levels.slow_lowest[at], levels.slow_highest[at])


def beyond_usual(levels: Levels, x: Single) -> Flags:
    """Where x lies outside the range of what was not unusual."""
    return (x < levels.usual_lowest) | (x > levels.usual_highest)


def leaves_range(levels: Levels) -> Flags:
    """Where the slow mean goes clearly beyond its range."""
    slow, lowest, highest = levels.means[SLOW], levels.slow_lowest, levels.slow_highest
    return np.maximum(slow - highest, lowest - slow) > FURTHER * (highest - lowest)


def learn(levels: Levels, x: Single, residual: Single, seen: np.ndarray, measured: Flags, is_usual: Flags) -> None:
    """Take in x and its bounded residual, where measured."""
    weight = measured.astype(np.float32)
    means, residuals = levels.means, levels.residuals
    deviations = np.empty((5, len(x)), np.float32)
    residuals += (_RESIDUAL_RATES * weight) * (residual - residuals)
    np.subtract(x, means[LONG], out=deviations[HOURS])
    np.subtract(x, means[LONGER_DAYS], out=deviations[DAYS])
    np.subtract(residuals[0], residuals[1], out=deviations[RESIDUAL])
    np.subtract(x, means[SHORT], out=deviations[NOISE])
    deviations[LONG_NOISE] = deviations[NOISE]
    deviations *= deviations
    bounded = deviations[:NOISE]
    squares = levels.squares[:NOISE]
    is_bounded = (seen >= _UNBOUNDED_POINTS) & (squares > 0)
    np.minimum(bounded, _BOUND * squares, out=bounded, where=is_bounded)
    levels.squares += (_SQUARE_RATES * weight) * (deviations - levels.squares)
    np.minimum(levels.slow_lowest, means[SLOW], out=levels.slow_lowest)
    np.maximum(levels.slow_highest, means[SLOW], out=levels.slow_highest)
    means += (_MEAN_RATES * weight) * (x - means)
    # A missing point has the last value for x, which changes nothing here.
    np.minimum(levels.lowest, x, out=levels.lowest)
    np.maximum(levels.highest, x, out=levels.highest)
    _widen_usual(levels, x, seen, measured & is_usual)
    np.copyto(levels.previous, levels.last, where=measured)
    np.copyto(levels.last, x, where=measured)


def _widen_usual(levels: Levels, x: Single, seen: np.ndarray, usual: Flags) -> None:
    """Let the range of what was not unusual reach x, but no further than by the usual deviation.

    The first points of a fault are not always unusual yet, and must not make the rest of it usual.
    """
    at = np.nonzero(usual & beyond_usual(levels, x))[0]
    if len(at):
        reach = np.where(seen[at] < _UNBOUNDED_POINTS, np.float32(np.inf), np.sqrt(levels.squares[HOURS, at]))
        lowest, highest = levels.usual_lowest[at], levels.usual_highest[at]
        levels.usual_lowest[at] = np.minimum(lowest, np.maximum(x[at], lowest - reach))
        levels.usual_highest[at] = np.maximum(highest, np.minimum(x[at], highest + reach))
