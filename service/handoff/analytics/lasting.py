"""What lasts: how unusual a count of events has been throughout the last five minutes.

With more points a day there are more chances to be wrong, so one point of a fine step has to be clearer than one of five
minutes. But how many events come by chance in one minute says nothing about the next: where all points of five minutes
would alert if they were of five minutes, nothing more has to be asked. Levels are another matter: their noise itself lasts
for minutes.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from handoff.analytics.columns import Columns, Flags, Single, column
from handoff.analytics.incidents import ALERT_AT

_LASTS_S: Final = 300.0
_POINTS_MAX: Final = 65_535


@dataclass(slots=True)
class Lasting(Columns):
    """The points up to now, one after the other, that were all unusual enough."""

    points: np.ndarray = column("word")
    least: Single = column("single")  # how unusual the least unusual of them was


def points_of(step_s: np.ndarray) -> np.ndarray:
    """How many points with these steps in seconds make up five minutes."""
    return np.ceil(_LASTS_S / step_s)


def follow(lasting: Lasting, unusual: Single, needed: np.ndarray, counted: Flags) -> Single:
    """Take in how unusual each point is; how unusual all of those in a row were that would alert.

    0 where fewer than `needed` were. A point that is not counted changes nothing.
    """
    goes_on = counted & (unusual >= ALERT_AT)
    lasting.points[counted & ~goes_on] = 0
    np.minimum(lasting.least, unusual, out=lasting.least, where=goes_on)
    np.copyto(lasting.least, unusual, where=goes_on & (lasting.points == 0))
    lasting.points += goes_on & (lasting.points < _POINTS_MAX)
    return np.where(goes_on & (lasting.points >= needed), lasting.least, np.float32(0))
