"""The features: in how many ways a point may differ from what its series has done so far.

Each is a number of 0 or more, computed before the point is learnt. None is comparable with another, or across series, until
`calibration` has turned it into how rare it is.
"""

from typing import Final

import numpy as np

from handoff.analytics.columns import Single
from handoff.analytics.levels import (
    DAYS,
    FAST,
    HOURS,
    LONG,
    LONG_NOISE,
    LONGER_DAYS,
    NOISE,
    RESIDUAL,
    SHORT,
    SHORTER_DAYS,
    SLOW,
    Levels,
)
from handoff.analytics.profile import Expected

# The order matters: `RAW` are the first, `RELATIVE` the last.
FEATURES: Final = (
    "level of hours",
    "level of days",
    "seasonal level",
    "range",
    "noise",
    "pattern of three",
    "pattern of two",
    "time of day",
    "band of the day",
    "step",
    "smoothed range",
)
(
    LEVEL_OF_HOURS,
    LEVEL_OF_DAYS,
    SEASONAL_LEVEL,
    RANGE,
    NOISE_CHANGE,
    THREE,
    TWO,
    TIME_OF_DAY,
    BAND_OF_DAY,
    STEP,
    SMOOTHED_RANGE,
) = range(len(FEATURES))
RAW: Final = slice(LEVEL_OF_HOURS, RANGE)  # their tail is read on the value itself, that of all others on its logarithm
SEASONAL: Final = [SEASONAL_LEVEL, TIME_OF_DAY, BAND_OF_DAY]  # these say nothing before their time of day has come round
RELATIVE: Final = slice(THREE, len(FEATURES))  # these carry the series' unit and are divided by its first steps
_TINY: Final = np.float32(1e-12)
_RANGE_MAX: Final = 100.0


def measure(
    levels: Levels, expected: Expected, x: Single, residual: Single, distances: tuple[Single, Single], seen: np.ndarray
) -> Single:
    """All features of one point per series, shape (features, series)."""
    out = np.empty((len(FEATURES), len(x)), np.float32)
    means, squares = levels.means, levels.squares
    span = levels.highest - levels.lowest
    floor = np.float32(0.01) * span + _TINY
    spreads = np.sqrt(squares[:NOISE]) + floor
    np.abs(means[SHORT] - means[LONG], out=out[LEVEL_OF_HOURS])
    np.abs(means[SHORTER_DAYS] - means[LONGER_DAYS], out=out[LEVEL_OF_DAYS])
    np.abs(levels.residuals[0] - levels.residuals[1], out=out[SEASONAL_LEVEL])
    out[LEVEL_OF_HOURS] /= spreads[HOURS]
    out[LEVEL_OF_DAYS] /= spreads[DAYS]
    out[SEASONAL_LEVEL] /= spreads[RESIDUAL]
    beyond = np.maximum(np.maximum(x - levels.highest, levels.lowest - x), 0)
    out[RANGE] = np.where(seen > 1, np.minimum(beyond / (span + _TINY), _RANGE_MAX), np.float32(0))
    quiet = (np.float32(0.002) * span) ** 2 + _TINY
    np.abs(np.log((squares[NOISE] + quiet) / (squares[LONG_NOISE] + quiet)), out=out[NOISE_CHANGE])
    out[THREE], out[TWO] = distances
    size = np.abs(residual, out=out[TIME_OF_DAY])
    band = np.minimum(np.minimum(np.abs(x - expected.highest), np.abs(x - expected.lowest)), size)
    np.multiply(band, expected.known, out=out[BAND_OF_DAY])
    np.abs(x - means[FAST], out=out[STEP])
    slow = means[SLOW]
    np.maximum(np.maximum(slow - levels.slow_highest, levels.slow_lowest - slow), 0, out=out[SMOOTHED_RANGE])
    return out
