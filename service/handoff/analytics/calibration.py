"""Calibration: how rare a feature's value is in the whole past of its own series.

Each feature has a histogram of its logarithm over everything the series has done. Below the top twentieth, rarity is read
from the histogram; above, from an exponential tail fitted to it, so that a value never seen gets a sensible probability.
The fit leans on a prior until there are many values in the tail. Rarity is -log10 of the probability, at most `RARITY_MAX`.

Why not a DDSketch or a t-digest: this keeps what a DDSketch keeps (logarithmic bins, mergeable, a bounded relative error),
but in a fixed size that is the same for all series, so that one numpy operation updates ten thousand of them.
"""

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from handoff.analytics.columns import Columns, Flags, Index, Single, column
from handoff.analytics.features import FEATURES, RAW, RELATIVE

BINS: Final = 48
_WIDTH: Final = 1 / 3
_LOWEST: Final = -10.0  # of the logarithm; what is smaller counts in the first bin
PENDING: Final = 16  # points between two fits
_EARLY_PENDING: Final = 8  # the same, while the series is young
_EARLY_POINTS: Final = 200
_NONE: Final = np.uint8(255)
_TAIL: Final = 0.05
_TAIL_RARITY: Final = -float(np.log10(_TAIL))
RARITY_MAX: Final = np.float32(5.0)  # what a year of five-minute points can tell
_PRIOR_WEIGHT: Final = 10.0  # as many values in the tail; without a prior a constant series alerts without end
_PRIOR_EXCESS: Final = 0.3  # mean excess over the tail's start, of a logarithm
_COUNTED_MAX: Final = 60_000  # then all counts are halved: a uint16 ends at 65,535
_COUNTED_MIN: Final = 10
_LN10: Final = 2.302585
_HUNDREDTHS: Final = 100.0
_EDGES: Final = (_LOWEST + np.arange(BINS + 1) * _WIDTH).astype(np.float32)
_CENTRES: Final = _LOWEST + (np.arange(BINS) + 0.5) * _WIDTH
_IS_RAW: Final = np.arange(len(FEATURES)) < RAW.stop
_VALUES: Final = np.where(_IS_RAW, np.exp(_CENTRES)[:, None], _CENTRES[:, None]).astype(np.float32)  # (bin, feature)


@dataclass(slots=True)
class Histograms(Columns):
    """Counts by bin and feature, and the bins of the points that are not in them yet."""

    counts: np.ndarray = column("word", BINS, len(FEATURES))
    pending: np.ndarray = column("byte", PENDING, len(FEATURES), fill=255)
    phase: np.ndarray = column("byte")  # where in `pending` the next point goes; missing points take a place, too
    base: Single = column("single", unit=1)  # the largest step of the first points: what RELATIVE features are divided by


@dataclass(slots=True)
class Tails:
    """What follows from the counts, and is therefore not stored. Shapes (features, series)."""

    start: Single  # where the tail begins
    rarity: Single  # at its start
    slope: Single  # 1 / (ln 10 * mean excess)
    body: np.ndarray = field(repr=False)  # (bins, features, series): rarity below the tail, in hundredths

    @classmethod
    def unknown(cls, count: int) -> "Tails":
        """Tails that nothing is in."""
        shape = (len(FEATURES), count)
        body = np.zeros((BINS, *shape), np.uint8)
        return cls(
            np.full(shape, 1e9, np.float32), np.full(shape, _TAIL_RARITY, np.float32), np.ones(shape, np.float32), body
        )

    @classmethod
    def of(cls, histograms: Histograms) -> "Tails":
        """The tails of all series."""
        tails = cls.unknown(len(histograms.base))
        _fit(tails, histograms.counts, slice(None))
        return tails


def rarity(histograms: Histograms, tails: Tails, features: Single, counted: Flags) -> Single:
    """How rare each feature is, -log10 p, shape (features, series); and note the point for the next fit.

    Args:
        histograms: changed only in `pending` and `phase`.
        tails: as of the last fit.
        features: what `features.measure` gave; changed in place.
        counted: which features of which series count, shape (features, series). All others have rarity 0.
    """
    count = features.shape[1]
    features[RELATIVE] /= np.maximum(histograms.base, np.float32(1e-30))
    logs = np.log(np.maximum(features, np.float32(1e-9)))
    bins = np.clip((logs - np.float32(_LOWEST)) * np.float32(1 / _WIDTH), 0, BINS - 1).astype(np.int64)
    logs[RAW] = features[RAW]
    excess = logs - tails.start
    places = bins * (len(FEATURES) * count)
    places += np.arange(len(FEATURES) * count).reshape(len(FEATURES), count)
    body = tails.body.ravel()[places] * np.float32(1 / _HUNDREDTHS)
    _note(histograms, bins, counted)
    rare = np.minimum(np.where(excess > 0, tails.rarity + excess * tails.slope, body), RARITY_MAX)
    return np.where(counted, rare, np.float32(0))


def refit(histograms: Histograms, tails: Tails, seen: np.ndarray) -> None:
    """Count what is pending, and fit again, where it is time."""
    phase = histograms.phase
    due = phase == PENDING
    due |= (phase == _EARLY_PENDING) & (seen < _EARLY_POINTS)
    if due.any():
        at = np.nonzero(due)[0]
        _count(histograms, at)
        phase[at[phase[at] == PENDING]] = 0
        _fit(tails, np.take(histograms.counts, at, axis=-1), at)


def _note(histograms: Histograms, bins: Any, counted: Flags) -> None:
    noted = np.where(counted, bins, _NONE).astype(np.uint8)
    first = int(histograms.phase[0])
    if (histograms.phase == first).all():
        histograms.pending[first] = noted
    else:
        histograms.pending[histograms.phase, :, np.arange(counted.shape[1])] = noted.T
    histograms.phase += np.uint8(1)


def _count(histograms: Histograms, at: Index) -> None:
    counts = np.take(histograms.counts, at, axis=-1)
    width = len(FEATURES) * len(at)
    flat, places = counts.reshape(-1), np.arange(width)
    for row in np.take(histograms.pending, at, axis=-1).reshape(PENDING, width):
        noted = row != _NONE
        if noted.all():
            flat[row.astype(np.int64) * width + places] += 1
        elif noted.any():
            flat[row[noted].astype(np.int64) * width + places[noted]] += 1
    full = counts[:, 0].sum(axis=0, dtype=np.int64) > _COUNTED_MAX
    if full.any():
        counts[:, :, full] >>= 1
    histograms.counts[:, :, at] = counts
    histograms.pending[:, :, at] = _NONE


def _fit(tails: Tails, counts: np.ndarray, at: Any) -> None:
    """Fit the tails of the series `at`, whose counts are given."""
    above = _from_above(counts.astype(np.float32))  # (bin, feature, series): values in this bin or above
    total = np.maximum(above[0], 1)
    known = above[0] >= _COUNTED_MIN
    first = (above > np.float32(_TAIL) * total).sum(axis=0, dtype=np.int64)  # the tail's first bin
    start = _EDGES[first]
    start[RAW] = np.exp(start[RAW])
    weighted = counts * _VALUES[:, :, None]
    squares = _from_above(weighted * _VALUES[:, :, None])[0]
    sums = _from_above(weighted)
    mean = sums[0] / total
    deviation = np.sqrt(np.maximum(squares / total - mean * mean, 0))
    inside = np.take_along_axis(_padded(above), first[None], axis=0)[0]
    excess = np.take_along_axis(_padded(sums), first[None], axis=0)[0] - inside * start
    prior = np.where(_IS_RAW[:, None], np.float32(0.5) * deviation + np.float32(1e-9), np.float32(_PRIOR_EXCESS))
    mean_excess = (excess + np.float32(_PRIOR_WEIGHT) * prior) / (inside + np.float32(_PRIOR_WEIGHT))
    mean_excess = np.maximum(mean_excess, np.float32(0.05) * deviation + np.float32(1e-6))
    share = np.maximum(above / total, np.float32(_TAIL))
    body = np.log(share) * np.float32(-_HUNDREDTHS / _LN10)
    tails.start[:, at] = np.where(known, start, tails.start[:, at])
    tails.rarity[:, at] = np.where(
        known, np.log(np.maximum(inside, 1) / total) * np.float32(-1 / _LN10), tails.rarity[:, at]
    )
    tails.slope[:, at] = np.where(known, 1 / (mean_excess * np.float32(_LN10)), tails.slope[:, at])
    tails.body[:, :, at] = np.where(known, body, 0).astype(np.uint8)


def _from_above(rows: Single) -> Single:
    """Sum each bin and all above it, in place. numpy's cumsum is ten times slower down the first axis."""
    for bin_ in range(BINS - 2, -1, -1):
        rows[bin_] += rows[bin_ + 1]
    return rows


def _padded(rows: Single) -> Single:
    return np.concatenate([rows, np.zeros_like(rows[:1])])
