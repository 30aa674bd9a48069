"""The profile of the day: for every five minutes (or longer step) the usual value, and the highest and lowest seen lately.

The band between lowest and highest is why a spike that comes daily, and a weekend that is always quiet, are both normal.

A bin is visited once a day. In a series of finer steps several points share a visit. The usual value follows each of them,
so that a slow drift is no news. The band is learnt when the visit is over, so that each is judged by other days; else the
first minute of a fault would make the next four look normal.
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
_NONE: Final = 65_535  # no bin: no visit goes on
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


@dataclass(slots=True)
class Visit(Columns):
    """The visit that goes on, in series whose points share bins."""

    bin: np.ndarray = column("word", fill=_NONE)
    highest: Single = column("single", unit=1)
    lowest: Single = column("single", unit=1)


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


def expect(profile: Profile, visit: Visit, bins: Index) -> Expected:
    """Read the bin of this moment, one per series. Of one that no other day has visited, the present visit tells."""
    it = _read(profile, bins, np.arange(len(bins)))
    begun = ~it.known & (visit.bin == bins)
    if not begun.any():
        return it
    highest, lowest = np.where(begun, visit.highest, it.highest), np.where(begun, visit.lowest, it.lowest)
    return Expected(it.at, it.known | begun, it.usual, highest, lowest, it.visits)


def leave(profile: Profile, visit: Visit, bins: Index, gaps: Flags) -> None:
    """Learn the visits that are over, since the next points are in these bins or come after a gap."""
    over = np.nonzero((visit.bin != _NONE) & ((visit.bin != bins) | gaps))[0]
    if len(over):
        expected = _read(profile, visit.bin[over].astype(np.int64), over)
        _learn_band(profile, expected, expected.usual, visit.highest[over], visit.lowest[over])
        visit.bin[over] = _NONE


def learn(
    profile: Profile,
    visit: Visit,
    expected: Expected,
    bins: Index,
    x: Single,
    residual: Single,
    measured: Flags,
    shares: Flags,
) -> Single:
    """Move the bin's usual value towards x, in bounds, and learn its band or go on with the visit where points share bins.

    Returns the bounded residual.
    """
    size = np.abs(residual)
    known = expected.known
    capped = np.minimum(size, _SPREAD_CAP * profile.spread + np.where(profile.spread == 0, size, np.float32(0)))
    profile.spread += np.float32(_SPREAD_RATE) * (known & measured) * (capped - profile.spread)
    limit = BOUND * profile.spread + np.float32(1e-12)
    bounded = np.minimum(np.maximum(residual, -limit), limit)
    weight = np.maximum(1 / (expected.visits + np.float32(1)), np.float32(_RATE_MIN))
    usual = np.where(known, expected.usual + weight * bounded, x)
    profile.usual.reshape(-1)[expected.at[measured]] = to_half(usual)[measured]
    alone = measured & ~shares
    if alone.any():
        _learn_band(profile, expected, usual, x, x, alone)
    if shares.any():
        _go_on(visit, bins, x, measured & shares)
    return bounded


def _read(profile: Profile, bins: Index, series: Index) -> Expected:
    at = bins * profile.usual.shape[1] + series
    visits = profile.visits.ravel()[at]
    return Expected(
        at, visits > 0, profile.usual.ravel()[at], profile.highest.ravel()[at], profile.lowest.ravel()[at], visits
    )


def _go_on(visit: Visit, bins: Index, x: Single, here: Flags) -> None:
    """Take x into the visit, or begin one."""
    begins = here & (visit.bin == _NONE)
    np.copyto(visit.bin, bins, where=begins, casting="unsafe")
    np.copyto(visit.highest, x, where=begins)
    np.copyto(visit.lowest, x, where=begins)
    np.maximum(visit.highest, x, out=visit.highest, where=here)
    np.minimum(visit.lowest, x, out=visit.lowest, where=here)


def _learn_band(
    profile: Profile, expected: Expected, usual: Single, highest: Single, lowest: Single, where: Flags | None = None
) -> None:
    """Learn a visit between these values: widen the band as far as they reach, or narrow it a little."""
    known = expected.known
    decay = np.float32(_BAND_DECAY)
    up = np.where(known & (highest <= expected.highest), expected.highest + decay * (usual - expected.highest), highest)
    down = np.where(known & (lowest >= expected.lowest), expected.lowest + decay * (usual - expected.lowest), lowest)
    at, band = expected.at, to_half(np.stack((up, down)))
    visits = np.minimum(expected.visits, _VISITS_MAX - 1) + np.uint8(1)
    if where is not None and not where.all():
        at, band, visits = at[where], band[:, where], visits[where]
    profile.highest.reshape(-1)[at], profile.lowest.reshape(-1)[at] = band
    profile.visits.reshape(-1)[at] = visits
