"""The life of an incident: it opens, escalates only if it gets clearly worse, holds while its cause lasts, and closes.

For a refractory period after an onset, only what is clearly worse speaks again. A series whose level has left the band in
which it was before the incident is held for longer, so that a level shift is told once. After days a new level is accepted.
What deviates the same way again within `_SAME_S` is the same incident, and so is what comes while the level moves further in
that direction: a leak is told once.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from handoff.analytics.columns import Columns, Flags, Index, Single, column
from handoff.analytics.levels import FURTHER, SLOW, Levels

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
_SAME_S: Final = 22 * 3_600.0  # from the alert, or from when the level last moved further; tomorrow's trouble is told
_SAME_MAX_S: Final = 14 * 86_400.0  # then what still moves further is told again
_MEMORY_S: Final = 7 * 86_400.0
_FREE: Final = 2.0  # alerts in that time that cost nothing, with the budget that people have if they choose none
_COST: Final = np.float32(0.08)  # of each further one: a noisy series has to be ever clearer
_MINUTE_FACTOR: Final = 0.67  # with more points per day there are more chances to be wrong
# Where what lasts is judged, too, a single point has to be clearer, so that a rate that drifts is not told of.
_LASTS_FACTOR: Final = 0.9
_LONG_AGO: Final = 16_000_000  # points; a float32 counts up to 16,777,216 and then stays
_SINCE_MAX: Final = 65_535


@dataclass(slots=True)
class Life(Columns):
    """Where the incident of each series stands."""

    worst: Single = column("single")  # at the last onset
    age: Single = column("single", fill=_LONG_AGO)  # points since it
    alerts: Single = column("single")  # leaky count
    since: np.ndarray = column("word")  # points since the incident opened, from 1 on; 0 if none is open
    peak: Single = column("single")  # the worst of the open incident
    lowest: Single = column("single", unit=1)  # the band of the slow mean before it
    highest: Single = column("single", unit=1)
    direction: Single = column("single")  # of what was told: 1 above what was expected, -1 below
    told: Single = column("single")  # the worst that was told in that direction
    told_age: Single = column("single", fill=_LONG_AGO)  # points since the first of it
    still: Single = column("single", fill=_LONG_AGO)  # points since that, or since the level last moved further
    reached: Single = column("single", unit=1)  # the slow mean then


def sensitivity(step_s: np.ndarray, may_last: Flags) -> Single:
    """What the strength is multiplied by: 1 from five minutes on, less for finer steps."""
    share = np.log(np.maximum(step_s, 1) / 60) / np.log(5)
    factor = np.clip(_MINUTE_FACTOR + (1 - _MINUTE_FACTOR) * share, _MINUTE_FACTOR, 1)
    return np.where(may_last, _LASTS_FACTOR * factor, factor).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Pace:
    """What follows from the sampling steps."""

    sensitivity: Single
    refractory: Single  # points
    remembered: Single  # the share of `alerts` that is left after a point
    accepted_after: Single  # points
    same: Single  # points
    same_max: Single  # points
    can_hold: Flags

    @classmethod
    def of(cls, step_s: np.ndarray, may_last: Flags) -> "Pace":
        """For series with these steps in seconds. `may_last` says of which it is judged what lasts."""
        return cls(
            sensitivity(step_s, may_last),
            np.maximum(_REFRACTORY_POINTS_MIN, _REFRACTORY_S / step_s).astype(np.float32),
            np.exp(-step_s / _MEMORY_S).astype(np.float32),
            (_ACCEPTED_AFTER_S / step_s).astype(np.float32),
            (_SAME_S / step_s).astype(np.float32),
            (_SAME_MAX_S / step_s).astype(np.float32),
            step_s < _HELD_BELOW_S,
        )


def advance(
    life: Life,
    levels: Levels,
    unusual: Single,
    lasts: Single,
    residual: Single,
    pace: Pace,
    measured: Flags,
    budget: float = 1.0,
) -> Single:
    """How strong the onset of each series is, in units of what alerts; 0 where nothing opens or escalates.

    `lasts` is how unusual each has been for so long that it does not count how fine the steps are. `residual` says in which
    direction the point deviates from what was expected of its time of day. `budget` is how many alerts there may be, as a
    multiple of the usual: with less, further alerts of a series have to be clearer sooner.
    """
    lasts = np.where(life.worst * pace.sensitivity < ALERT_AT, lasts, np.float32(0))  # what was told is not told anew by it
    unusual = np.maximum(unusual, lasts / pace.sensitivity)
    life.alerts *= pace.remembered
    life.age += 1
    # From 1 at `_HOLD` of the refractory period to 0 at its end.
    barrier = life.age / pace.refractory
    np.subtract(1, barrier, out=barrier)
    barrier *= 1 / (1 - _HOLD)
    np.minimum(np.maximum(barrier, 0, out=barrier), 1, out=barrier)
    barrier *= life.worst * _ESCALATION
    repeats = _follow(life, levels, unusual, residual, pace)
    is_held = _hold_or_close(life, levels, pace, measured)
    barrier = np.where(is_held, np.maximum(barrier, life.peak * _HELD_ESCALATION), barrier)
    barrier *= lasts < ALERT_AT  # so what was not told is no bar to what lasts
    at = np.nonzero(measured & ~repeats & (unusual >= _OPEN_MIN) & (unusual > barrier))[0]
    strength = np.zeros_like(unusual)
    if len(at):
        now = unusual[at]
        crowded = 1 + _COST * np.maximum(0, life.alerts[at] - np.float32(_FREE * budget))
        strength[at] = pace.sensitivity[at] * now / crowded / ALERT_AT
        is_clear = now * pace.sensitivity[at] >= ALERT_AT  # what is not must hold back nothing that is
        life.worst[at] = now
        life.age[at] = 0
        life.alerts[at] += is_clear
        life.peak[at] = np.maximum(now, life.peak[at])
        _open(life, levels, unusual, at[is_clear & (life.since[at] == 0)])
        told = at[strength[at] >= 1]
        _tell(life, levels, unusual[told], np.sign(residual[told]), pace, told)
    return strength


def is_open(life: Life, pace: Pace) -> Flags:
    """Whether an incident is open: it is not closed yet, or the level still moves further in its direction."""
    return (life.since > 0) | (_is_same(life, pace) & (life.still < life.told_age))


def _is_same(life: Life, pace: Pace) -> Flags:
    return (life.still <= pace.same) & (life.told_age < pace.same_max)


def _follow(life: Life, levels: Levels, unusual: Single, residual: Single, pace: Pace) -> Flags:
    """See whether the level moves further in the direction of what was told; which series only do again what was told."""
    life.still += 1
    life.told_age += 1
    repeats = np.zeros(len(unusual), np.bool_)
    at = np.nonzero(_is_same(life, pace))[0]
    if len(at):
        slow, direction = levels.means[SLOW, at], life.direction[at]
        span = levels.slow_highest[at] - levels.slow_lowest[at]
        further = at[(slow - life.reached[at]) * direction > FURTHER * span]
        life.reached[further] = levels.means[SLOW, further]
        life.still[further] = 0
        repeats[at] = (np.sign(residual[at]) == direction) & (unusual[at] <= _HELD_ESCALATION * life.told[at])
    return repeats


def _tell(life: Life, levels: Levels, unusual: Single, direction: Single, pace: Pace, at: Index) -> None:
    """Note what is told, and whether it is something new."""
    new = (direction != life.direction[at]) | ~_is_same(life, pace)[at]
    life.told[at] = np.where(new, unusual, np.maximum(unusual, life.told[at]))
    begins, direction = at[new], direction[new]
    life.direction[begins] = direction
    life.told_age[begins] = life.still[begins] = 0
    life.reached[begins] = np.where(direction > 0, levels.slow_highest[begins], levels.slow_lowest[begins])


def _hold_or_close(life: Life, levels: Levels, pace: Pace, measured: Flags) -> Flags:
    """Close what is back in its band or has lasted too long; which of the others have left their band, and are held."""
    at = np.nonzero(life.since)[0]
    is_held = np.zeros(len(life.since), np.bool_)
    if len(at):
        since = np.minimum(life.since[at].astype(np.int32) + 1, _SINCE_MAX)
        slow = levels.means[SLOW, at]
        is_out = (slow < life.lowest[at]) | (slow > life.highest[at])
        goes_on = (is_out | (since <= _LEAVES_WITHIN + 1)) & (since <= pace.accepted_after[at])
        life.since[at] = np.where(measured[at] & ~goes_on, 0, since)
        is_held[at] = (life.since[at] > 0) & is_out & pace.can_hold[at]
    return is_held


def _open(life: Life, levels: Levels, unusual: Single, opens: Index) -> None:
    life.since[opens] = 1
    life.peak[opens] = unusual[opens]
    life.lowest[opens] = levels.slow_lowest[opens]
    life.highest[opens] = levels.slow_highest[opens]
