"""The life of an incident: it opens, escalates only if it gets clearly worse, holds while its cause lasts, and closes.

For a refractory period after an onset, only what is clearly worse speaks again. A series whose level has left the band in
which it was before the incident is held for longer, so that a level shift is told once. After days a new level is accepted.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from handoff.analytics.columns import Columns, Flags, Single, column
from handoff.analytics.levels import SLOW, Levels

ALERT_AT: Final = np.float32(10.0)  # how unusual a series has to be: the smallest round value that keeps quiet series quiet
_OPEN_MIN: Final = np.float32(0.5)
_ESCALATION: Final = np.float32(1.2)  # times the worst so far
_HELD_ESCALATION: Final = np.float32(1.5)  # the same, while the level is out of its band
_HOLD: Final = np.float32(0.34)  # of the refractory period; then the barrier falls to nothing
# Shorter than a day, so that tomorrow's trouble is told; 3 h cost a quarter of the quality.
_REFRACTORY_S: Final = 18 * 3_600.0
_REFRACTORY_POINTS_MIN: Final = 20.0
_ACCEPTED_AFTER_S: Final = 3 * 86_400.0  # seven days hide more of what is labelled and mute no more of a shift
_LEAVES_WITHIN: Final = 24  # points: the slow mean takes that long to leave its band
_HELD_BELOW_S: Final = 1_200.0  # with a longer step the slow mean is that of days, and would hide other incidents
_MEMORY_S: Final = 7 * 86_400.0
_FREE: Final = np.float32(2.0)  # alerts in that time that cost nothing
_COST: Final = np.float32(0.08)  # of each further one: a noisy series has to be ever clearer
_MINUTE_FACTOR: Final = 0.7  # with more points per day there are more chances to be wrong
_LONG_AGO: Final = 100_000_000
_SINCE_MAX: Final = 65_535


@dataclass(slots=True)
class Life(Columns):
    """Where the incident of each series stands."""

    worst: Single = column("single")  # at the last onset
    age: np.ndarray = column("long", fill=_LONG_AGO)  # points since it
    alerts: Single = column("single")  # leaky count
    since: np.ndarray = column("word")  # points since the incident opened, from 1 on; 0 if none is open
    peak: Single = column("single")  # the worst of the open incident
    lowest: Single = column("single", unit=1)  # the band of the slow mean before it
    highest: Single = column("single", unit=1)


def sensitivity(step_s: np.ndarray) -> Single:
    """What the strength is multiplied by: 1 from five minutes on, less for finer steps."""
    share = np.log(np.maximum(step_s, 1) / 60) / np.log(5)
    return np.clip(_MINUTE_FACTOR + (1 - _MINUTE_FACTOR) * share, _MINUTE_FACTOR, 1).astype(np.float32)


def advance(life: Life, levels: Levels, unusual: Single, step_s: np.ndarray, measured: Flags) -> Single:
    """How strong the onset of each series is, in units of what alerts; 0 where nothing opens or escalates."""
    refractory = np.maximum(_REFRACTORY_POINTS_MIN, _REFRACTORY_S / step_s).astype(np.float32)
    life.alerts *= np.exp(-step_s / _MEMORY_S).astype(np.float32)
    life.age += 1
    share = life.age / refractory
    falling = np.where(share < _HOLD, 1, 1 - (share - _HOLD) / (1 - _HOLD))
    barrier = np.where(share > 1, 0, life.worst * _ESCALATION * falling)
    is_held = _hold_or_close(life, levels, step_s, measured)
    barrier = np.where(is_held, np.maximum(barrier, life.peak * _HELD_ESCALATION), barrier)
    onset = measured & (unusual >= _OPEN_MIN) & (unusual > barrier)
    crowded = 1 + _COST * np.maximum(0, life.alerts - _FREE)
    strength = np.where(onset, sensitivity(step_s) * unusual / crowded, 0) / ALERT_AT
    life.worst = np.where(onset, unusual, life.worst).astype(np.float32)
    life.age[onset] = 0
    alerting = onset & (unusual >= ALERT_AT)
    life.alerts += alerting
    life.peak = np.where(onset, np.maximum(unusual, life.peak), life.peak).astype(np.float32)
    _open(life, levels, unusual, alerting & (life.since == 0))
    return strength.astype(np.float32)


def _hold_or_close(life: Life, levels: Levels, step_s: np.ndarray, measured: Flags) -> Flags:
    """Close what is back in its band or has lasted too long; which of the others have left their band, and are held."""
    is_open = life.since > 0
    life.since = np.minimum(life.since + is_open.astype(np.uint16), _SINCE_MAX).astype(np.uint16)
    slow = levels.means[SLOW]
    is_out = (slow < life.lowest) | (slow > life.highest)
    goes_on = (is_out | (life.since <= _LEAVES_WITHIN + 1)) & (life.since <= _ACCEPTED_AFTER_S / step_s)
    life.since[is_open & measured & ~goes_on] = 0
    return (life.since > 0) & is_out & (step_s < _HELD_BELOW_S)


def _open(life: Life, levels: Levels, unusual: Single, opens: Flags) -> None:
    life.since[opens] = 1
    life.peak[opens] = unusual[opens]
    life.lowest[opens] = levels.slow_lowest[opens]
    life.highest[opens] = levels.slow_highest[opens]
