"""The profile of the day: for every five minutes (or longer step) the usual value, and the highest and lowest seen lately.

The band between lowest and highest is why a spike that comes daily, and a weekend that is always quiet, are both normal.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from handoff.analytics.columns import Columns, Flags, Index, Single, column, to_half

BINS: Final = 288  # five minutes each: with 144 or 96 the detector gets measurably worse
DAY_S: Final = 86_400
_RATE_MIN: Final = 0.15  # a visit's weight in the usual value, after the first few
_VISITS_MAX: Final = 15  # more are not told apart; the weight is at its minimum from the sixth on
_BAND_DECAY: Final = 0.02  # per visit, so that a band narrows within weeks
BOUND: Final = 4.0  # times the usual residual: larger ones move the profile no further
_SPREAD_RATE: Final = 0.01
_SPREAD_CAP: Final = 5.0


@dataclass(slots=True)
class Profile(Columns):
    """Values in the series' unit, by bin."""

    usual: Single = column("half", BINS, unit=1)
    highest: Single = column("half", BINS, unit=1)
    lowest: Single = column("half", BINS, unit=1)
    visits: np.ndarray = column("nibble", BINS)
    spread: Single = column("single", unit=1)  # the usual size of a residual


@dataclass(frozen=True, slots=True)
class Expected:
    """What the profile says about one moment, per series. Where `known` is false, the other values mean nothing."""

    at: Index  # position of the moment's bin in the flattened arrays
    known: Flags
    usual: Single
    highest: Single
    lowest: Single
    visits: np.ndarray


def bins_per_day(step_s: np.ndarray) -> Index:
    """How many bins a series with this step fills."""
    return np.clip(np.round(DAY_S / step_s), 2, BINS).astype(np.int64)


def shares_bins(step_s: np.ndarray) -> Flags:
    """Whether a bin has several points of the same day."""
    return step_s * BINS < DAY_S


def bin_of(second_of_day: np.ndarray, bins: np.ndarray) -> Index:
    """The bin of a moment, given in local time so that the hour of daylight saving does not move the day."""
    return (second_of_day * bins // DAY_S).astype(np.int64)


def expect(profile: Profile, bins: Index) -> Expected:
    """Read the bin of this moment, one per series."""
    count = profile.usual.shape[1]
    at = bins * count + np.arange(count)
    visits = profile.visits.ravel()[at]
    return Expected(
        at, visits > 0, profile.usual.ravel()[at], profile.highest.ravel()[at], profile.lowest.ravel()[at], visits
    )


def learn(profile: Profile, expected: Expected, x: Single, residual: Single, measured: Flags) -> Single:
    """Move the bin towards x, in bounds. Returns the bounded residual."""
    size = np.abs(residual)
    known = expected.known
    capped = np.minimum(size, _SPREAD_CAP * profile.spread + np.where(profile.spread == 0, size, np.float32(0)))
    profile.spread += np.float32(_SPREAD_RATE) * (known & measured) * (capped - profile.spread)
    limit = BOUND * profile.spread + np.float32(1e-12)
    bounded = np.minimum(np.maximum(residual, -limit), limit)
    weight = np.maximum(1 / (expected.visits + np.float32(1)), np.float32(_RATE_MIN))
    usual = np.where(known, expected.usual + weight * bounded, x)
    decay = np.float32(_BAND_DECAY)
    highest = np.where(known & (x <= expected.highest), expected.highest + decay * (usual - expected.highest), x)
    lowest = np.where(known & (x >= expected.lowest), expected.lowest + decay * (usual - expected.lowest), x)
    at, band = expected.at, to_half(np.stack((usual, highest, lowest)))
    visits = np.minimum(expected.visits, _VISITS_MAX - 1) + np.uint8(1)
    if not measured.all():
        at, band, visits = at[measured], band[:, measured], visits[measured]
    for values, into in zip(band, (profile.usual, profile.highest, profile.lowest), strict=True):
        into.reshape(-1)[at] = values
    profile.visits.reshape(-1)[at] = visits
    return bounded
