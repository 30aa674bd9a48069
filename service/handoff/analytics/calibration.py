"""Calibration: how rare a feature's value is in the whole past of its own series.

Each feature has a histogram of its logarithm over everything the series has done. Every few points a curve of two parts is
fitted to it: an exponential tail from the top twentieth on, so that a value never seen gets a sensible probability, and
below it a line through the median. The tail leans on a prior until there are many values in it. Rarity is -log10 of the
probability, at most `RARITY_MAX`.

Why not a DDSketch or a t-digest: this keeps what a DDSketch keeps (logarithmic bins, mergeable, a bounded relative error),
but in a fixed size that is the same for all series, so that one numpy operation updates ten thousand of them.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from handoff.analytics.columns import Columns, Flags, Single, column
from handoff.analytics.features import FEATURES, RAW, RELATIVE

BINS: Final = 48
_WIDTH: Final = 1 / 3
_LOWEST: Final = -10.0  # of the logarithm; what is smaller counts in the first bin
_POINTS: Final = 32  # between two fits
_EARLY_POINTS: Final = 8  # the same, while the series is young; both are powers of two
_EARLY_UNTIL: Final = 600  # with five-minute points, the day on which the time of day is new is over
_TAIL: Final = np.float32(0.05)
_HALF: Final = np.float32(0.5)
_TAIL_RARITY: Final = -np.log10(_TAIL)
_HALF_RARITY: Final = -np.log10(_HALF)
RARITY_MAX: Final = np.float32(5.0)  # what a year of five-minute points can tell
_PRIOR_WEIGHT: Final = np.float32(10.0)  # as many values in the tail; without a prior a constant series alerts without end
_PRIOR_EXCESS: Final = np.float32(0.3)  # mean excess over the tail's start, of a logarithm
_COUNTED_MAX: Final = 60_000  # then all counts are halved: a uint16 ends at 65,535
_COUNTED_MIN: Final = 10
_LN10: Final = np.float32(2.302585)
_TINY: Final = np.float32(1e-6)
_UNKNOWN: Final = 1e9
_CENTRES: Final = _LOWEST + (np.arange(BINS) + 0.5) * _WIDTH
_EDGES: Final = _LOWEST + np.arange(BINS + 1) * _WIDTH
_IS_RAW: Final = (np.arange(len(FEATURES)) < RAW.stop)[:, None]
# (bin, feature, 1): what a bin stands for, and where it begins.
_VALUES, _STARTS = (np.where(_IS_RAW, np.exp(it), it).T[:, :, None].astype(np.float32) for it in (_CENTRES, _EDGES))


@dataclass(slots=True)
class Histograms(Columns):
    """Counts by bin and feature, and the curve that was last fitted to them."""

    counts: np.ndarray = column("word", BINS, len(FEATURES))
    phase: np.ndarray = column("byte")  # points, missing ones too, so that series that began together are fitted together
    base: Single = column("single", unit=1)  # the largest step of the first points: what RELATIVE features are divided by
    start: Single = column("single", len(FEATURES), fill=_UNKNOWN)  # where the tail begins
    rarity: Single = column("single", len(FEATURES), fill=_TAIL_RARITY)  # there
    tail: Single = column("single", len(FEATURES), fill=1.0)  # slope from there on
    body: Single = column("single", len(FEATURES), fill=_UNKNOWN)  # slope below it


def rarity(histograms: Histograms, features: Single, counted: Flags) -> Single:
    """How rare each feature is, -log10 p, shape (features, series); then count it.

    Args:
        histograms: changed in `counts` only.
        features: what `features.measure` gave; changed in place.
        counted: which features of which series count, shape (features, series). All others have rarity 0.
    """
    features[RELATIVE] /= np.maximum(histograms.base, np.float32(1e-30))
    logs = np.log(np.maximum(features, np.float32(1e-9)))
    bins = (logs - np.float32(_LOWEST)) * np.float32(1 / _WIDTH)
    np.minimum(np.maximum(bins, 0, out=bins), BINS - 1, out=bins)
    places = bins.astype(np.int64)
    places *= features.size
    places += np.arange(features.size).reshape(features.shape)
    histograms.counts.reshape(-1)[places] += counted
    logs[RAW] = features[RAW]
    logs -= histograms.start
    in_tail = logs > 0
    logs *= np.where(in_tail, histograms.tail, histograms.body)
    logs += histograms.rarity
    np.minimum(logs, np.where(in_tail, RARITY_MAX, _TAIL_RARITY), out=logs)
    np.maximum(logs, 0, out=logs)
    logs *= counted
    return logs


def refit(histograms: Histograms, seen: np.ndarray) -> None:
    """Fit again where it is time. `seen` counts the points that were measured, with this one."""
    histograms.phase += np.uint8(1)
    due = histograms.phase & np.where(seen < _EARLY_UNTIL, np.uint8(_EARLY_POINTS - 1), np.uint8(_POINTS - 1)) == 0
    if due.all():
        fit(histograms)
    elif due.any():
        at = np.nonzero(due)[0]
        _fit(histograms, np.take(histograms.counts, at, axis=-1), at)


def fit(histograms: Histograms) -> None:
    """Fit all series again."""
    _fit(histograms, histograms.counts, slice(None))


def _fit(histograms: Histograms, counts: np.ndarray, at: Any) -> None:
    """Fit the curves of the series `at`, whose counts are given."""
    total = counts.sum(axis=0, dtype=np.float32)
    known = total >= _COUNTED_MIN
    tail_max, half = _TAIL * total, _HALF * total
    shape = total.shape
    above, summed, squared, tail_sum, tail_count = (np.zeros(shape, np.float32) for _ in range(5))
    start, middle = (np.broadcast_to(_STARTS[BINS], shape).copy() for _ in range(2))
    # From the highest bin down: what lies in it and above it.
    for number in range(BINS - 1, -1, -1):
        row = counts[number].astype(np.float32)
        above += row
        row *= _VALUES[number]
        summed += row
        row *= _VALUES[number]
        squared += row
        in_tail = above <= tail_max
        np.copyto(tail_sum, summed, where=in_tail)
        np.copyto(tail_count, above, where=in_tail)
        np.copyto(start, _STARTS[number], where=in_tail)
        np.copyto(middle, _STARTS[number], where=above <= half)
    total = np.maximum(total, 1)
    mean = summed / total
    deviation = np.sqrt(np.maximum(squared / total - mean * mean, 0))
    prior = np.where(_IS_RAW, _HALF * deviation + np.float32(1e-9), _PRIOR_EXCESS)
    excess = (tail_sum - tail_count * start + _PRIOR_WEIGHT * prior) / (tail_count + _PRIOR_WEIGHT)
    excess = np.maximum(excess, _TAIL * deviation + _TINY)
    rarity = np.log10(total / np.maximum(tail_count, 1))
    body = (rarity - _HALF_RARITY) / np.maximum(start - middle, _TINY)
    for values, into in (
        (start, histograms.start),
        (rarity, histograms.rarity),
        (1 / (excess * _LN10), histograms.tail),
        (body, histograms.body),
    ):
        into[:, at] = np.where(known, values, into[:, at])
    full = total[0] > _COUNTED_MAX
    if full.any():
        counts[:, :, full] >>= 1
        histograms.counts[:, :, at] = counts
