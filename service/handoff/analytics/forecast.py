"""What a daily figure will be, with an interval that is as wide as the method was wrong on the same series before."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from handoff.analytics.columns import Double
from handoff.analytics.trend import slope_of

POINTS_MIN: Final = 14
CONFIDENCE: Final = 0.9
_TRAINED_ON_MIN: Final = 8  # points before the first forecast that is compared with what came
_ORIGINS_MAX: Final = 60  # of such forecasts
_AHEAD_MAX: Final = 14  # points that they look ahead, at most a third of the series
_RECENT: Final = 28  # points that say how it goes on
_CYCLES: Final = 4  # of which the same place counts
# Of the errors before: more than CONFIDENCE, because the method was chosen by the same errors. By tests/bench/forecast.py.
_ERRORS_WITHIN: Final = 0.95
_GROWTH: Final = (
    0.0,
    1.0,
)  # of the errors, as a power of how far ahead: 0 about a level, 0.5 a random walk, 1 a wrong slope


@dataclass(frozen=True, slots=True)
class Forecast:
    """The expected value of each coming point, and the interval in which it is with CONFIDENCE.

    `coverage` is the share of `tried` earlier points that were in the interval that this method gave for them.
    """

    expected: Double
    low: Double
    high: Double
    coverage: float
    tried: int


def forecast(x: Double, ahead: int, season: int = 7) -> Forecast | None:
    """Forecast the next `ahead` points of evenly spaced ones. None if there are fewer than POINTS_MIN, or gaps among them.

    Three methods are tried on the series' own past: it goes on from its last value by its usual step, it stays at its recent
    level at that place of the cycle, or it follows a line. The one that was wrong least is used.
    """
    if len(x) < POINTS_MIN or not np.isfinite(x).all():
        return None
    tested = min(_AHEAD_MAX, len(x) // 3)
    origins = range(max(_TRAINED_ON_MIN, len(x) - _ORIGINS_MAX - tested), len(x))
    best, errors = _step, np.zeros((0, 0))
    for method in (_step, _level, _line):
        found = _errors(method, x, origins, tested, season)
        if not errors.size or np.nanmean(np.abs(found)) < np.nanmean(np.abs(errors)):
            best, errors = method, found
    width, growth = _width(np.abs(errors))
    expected = best(x, ahead, season)
    spread = width * np.arange(1, ahead + 1) ** growth
    known = np.abs(errors[np.isfinite(errors)])
    spreads = np.broadcast_to(width * np.arange(1, tested + 1) ** growth, errors.shape)[np.isfinite(errors)]
    return Forecast(expected, expected - spread, expected + spread, float((known <= spreads).mean()), len(known))


def _errors(method: Callable[[Double, int, int], Double], x: Double, origins: range, tested: int, season: int) -> np.ndarray:
    """By origin and points ahead: what came, less what was forecast. NaN where nothing has come yet."""
    errors = np.full((len(origins), tested), np.nan)
    for row, origin in enumerate(origins):
        came = x[origin : origin + tested]
        errors[row, : len(came)] = came - method(x[:origin], len(came), season)
    return errors


def _width(errors: np.ndarray) -> tuple[float, float]:
    """The half-width one point ahead, and the power by which it grows with the points ahead."""
    ahead = np.arange(1, errors.shape[1] + 1)
    within = np.array([np.nanquantile(errors[:, place], _ERRORS_WITHIN) for place in range(errors.shape[1])])
    if not within.any():
        return 0.0, 0.0
    logs = np.log(np.maximum(within, within.max() * 1e-6))
    growth = float(np.clip(np.polyfit(np.log(ahead), logs, 1)[0], *_GROWTH)) if len(ahead) > 1 else _GROWTH[1]
    return float((within / ahead**growth).max()), growth


def _step(x: Double, ahead: int, season: int) -> Double:  # noqa: ARG001 - each method takes the cycle
    recent = x[-_RECENT:]
    return x[-1] + slope_of(np.arange(len(recent), dtype=np.float64), recent) * np.arange(1, ahead + 1)


def _level(x: Double, ahead: int, season: int) -> Double:
    recent = x[-_CYCLES * season :]
    places = np.arange(len(x) - len(recent), len(x)) % season
    level = float(np.median(recent))
    found = np.array(
        [np.median(recent[places == place]) if np.any(places == place) else level for place in range(season)], np.float64
    )
    return found[np.arange(len(x), len(x) + ahead) % season]


def _line(x: Double, ahead: int, season: int) -> Double:  # noqa: ARG001 - each method takes the cycle
    recent = x[-_RECENT:]
    t = np.arange(len(recent), dtype=np.float64)
    slope = slope_of(t, recent)
    return float(np.median(recent - slope * t)) + slope * (len(recent) + np.arange(ahead, dtype=np.float64))
