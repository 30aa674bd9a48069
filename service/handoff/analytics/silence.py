"""Silences: how long a count has been 0 that often is.

Where a 0 is nothing unusual, no single one says that an agent has gone; how many come in a row does. The lengths of the
silences of a series are taken to be geometrically distributed, with the mean of those that are over, or wider if their mean
square is. Where they are of very different lengths that is not enough, so the longest so far counts, too.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from handoff.analytics.columns import Columns, Double, Flags, Single, column

_OVER_MIN: Final = 10  # silences that are over, before one is judged
_LONGER: Final = 1.5  # times the longest so far
_UNSURE: Final = 2.0  # standard errors by which the mean may be longer than it looks
_LN10: Final = np.float32(np.log(10))
_RARITY_MAX: Final = np.float32(12.0)  # it grows with each minute, but does not become a worse fault
RARITY_OF_ALERT: Final = 6.0  # all series of a service have some 100,000 silences a week: a tenth of an alert


@dataclass(slots=True)
class Silences(Columns):
    """In points."""

    present: np.ndarray = column("long")  # since the last count above 0
    longest: np.ndarray = column("long")  # of those that are over
    over: Single = column("single")  # how many are
    total: Single = column("single")
    squares: Single = column("single")


@dataclass(frozen=True, slots=True)
class Silence:
    """The present silence of each series."""

    rarity: Single  # -log10 of the probability that one is as long; 0 while that is nothing to speak of
    points: np.ndarray
    longest: np.ndarray  # before it


def follow(silences: Silences, raw: Double, measured: Flags, is_count: Flags) -> Silence:
    """Take in one point of each series; how long each has been silent, and how rare that is.

    `raw` has the values as measured. A point that was not measured changes nothing, and a silence goes on after it.
    """
    rarity = np.zeros(len(raw), np.float32)
    counted = measured & is_count
    if not counted.any():
        return Silence(rarity, silences.present.copy(), silences.longest.copy())
    ends = counted & (raw > 0) & (silences.present > 0)
    if ends.any():
        at = np.nonzero(ends)[0]
        length = silences.present[at].astype(np.float32)
        silences.longest[at] = np.maximum(silences.longest[at], silences.present[at])
        silences.over[at] += 1
        silences.total[at] += length
        silences.squares[at] += length * length
        silences.present[at] = 0
    silences.present += counted & (raw == 0)
    speaks = counted & (silences.over >= _OVER_MIN) & (silences.present > _LONGER * silences.longest)
    if speaks.any():
        at = np.nonzero(speaks)[0]
        tenth = _tenth(silences.over[at], silences.total[at], silences.squares[at])
        rarity[at] = np.minimum(silences.present[at] / tenth, _RARITY_MAX)
    return Silence(rarity, silences.present.copy(), silences.longest.copy())


def _tenth(over: Single, total: Single, squares: Single) -> Single:
    """Of how many more points only every tenth silence is."""
    mean = total / over
    wider = np.sqrt(np.maximum(1, squares / over / (mean * (2 * mean - 1))))  # than a geometric distribution
    unsure = mean * (1 + _UNSURE / np.sqrt(over))
    return (wider * _LN10 / -np.log1p(-1 / unsure)).astype(np.float32)
