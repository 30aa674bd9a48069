"""What lasts: how unusual a count of events has been throughout the last five or ten minutes.

A series of finer steps has more chances to be wrong, so a single point of it must be clearer than a five-minute point before
it alerts. But the number of events in one minute says nothing about chance in the next. So five minutes that would all alert
in a five-minute series are judged without that handicap, if each lies beyond what was usual or takes the level to where it
never was; over ten minutes, less is enough. A rate that drifts for half an hour at a time seldom does either. Levels and
durations are left out: their noise itself lasts for minutes.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from handoff.analytics.columns import Columns, Flags, Single, column
from handoff.analytics.incidents import ALERT_AT

_SECONDS: Final = np.array([[300.0], [600.0]])
_ENOUGH: Final = np.array([[1.0], [0.8]], np.float32)  # of what alerts, throughout so many seconds
_NEEDED: Final = _ENOUGH * ALERT_AT
_POINTS_MAX: Final = 65_535


@dataclass(slots=True)
class Lasting(Columns):
    """The points up to now, one after the other, that were all unusual enough: for five minutes, and for ten."""

    points: np.ndarray = column("word", len(_ENOUGH))
    least: Single = column("single", len(_ENOUGH))  # how unusual the least unusual of them was


def points_of(step_s: np.ndarray) -> np.ndarray:
    """How many points with these steps in seconds have to be unusual one after the other, shape (2, series)."""
    return np.ceil(_SECONDS / step_s)


def follow(lasting: Lasting, unusual: Single, needed: np.ndarray, counted: Flags) -> Single:
    """Take in how unusual each point is, 0 if it may not last; how unusual each series has been for so long.

    That is said as of a point of five minutes. 0 where fewer than `needed` points in a row were unusual enough. A point that
    is not counted changes nothing.
    """
    lasts = np.zeros(len(unusual), np.float32)
    at = np.nonzero(counted & ((unusual >= _NEEDED[-1]) | (lasting.points[-1] > 0)))[0]
    if len(at):
        now, points, least = unusual[at], lasting.points[:, at], lasting.least[:, at]
        goes_on = now >= _NEEDED
        points = np.where(goes_on, np.minimum(points, _POINTS_MAX - 1) + 1, 0)
        least = np.where(points > 1, np.minimum(least, now), now)
        lasts[at] = np.where(goes_on & (points >= needed[:, at]), least / _ENOUGH, np.float32(0)).max(axis=0)
        lasting.points[:, at], lasting.least[:, at] = points, least
    return lasts
