"""Echoes: what a point far out leaves behind in the points after it.

For some points it is still in the pattern and in the level of the hour, so that they look unusual although their own values
are what is usual at their time of day. In a series whose odd points nearly always come alone that is noise, and nothing
opens until another odd point confirms it. In all others a fault may well begin with one odd point, and nothing is held back.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from handoff.analytics.columns import Columns, Flags, Single, column

_LASTS: Final = 12  # points: the mean that is the level of the hour has a rate of 1/12
_ODD: Final = np.float32(1.6)  # rarity: one point of 40
_ORDINARY: Final = np.float32(1.3)  # rarity: all but one point of 20
_ODD_MIN: Final = 15  # before that nothing is known about how they come
_ALONE: Final = np.float32(0.9)  # of the odd points; 0.95 where each point is independent of the one before
_ODD_MAX: Final = 250  # then both counts are halved: a uint8 ends at 255


@dataclass(slots=True)
class Echoes(Columns):
    """How the odd points of a series come. Odd is what is rare at its time of day."""

    since: np.ndarray = column("byte", fill=_LASTS)  # points since the last odd one, at most `_LASTS`
    odd: np.ndarray = column("byte")
    alone: np.ndarray = column("byte")  # those that an ordinary point followed


def follow(echoes: Echoes, rarity: Single, counted: Flags) -> Flags:
    """Take in how rare each point is at its time of day; which series only echo an odd point.

    `counted` says where a point was measured and its time of day is known; elsewhere nothing changes.
    """
    is_ordinary = counted & (rarity < _ORDINARY)
    is_near = echoes.since < _LASTS
    after_odd = counted & (echoes.since == 0)
    echoes.odd += after_odd
    echoes.alone += after_odd & is_ordinary
    echoes.since += counted & is_near
    echoes.since[counted & (rarity >= _ODD)] = 0
    full = echoes.odd >= _ODD_MAX
    if full.any():
        echoes.odd[full] >>= 1
        echoes.alone[full] >>= 1
    return is_ordinary & is_near & (echoes.odd >= _ODD_MIN) & (echoes.alone >= _ALONE * echoes.odd)
