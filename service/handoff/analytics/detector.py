"""The detector: one point of each series at a time, in constant memory, for all series at once.

docs/detection.md explains it. What is said about a point depends on that point and on earlier ones of the same series only.
The results of a series are the same bits whatever other series stand beside it, and wherever its state was stored and read.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from handoff.analytics import codebook, counts, echoes, features, incidents, lasting, levels, pooling, profile, silence
from handoff.analytics.calibration import Histograms, rarity, refit
from handoff.analytics.columns import HALF_MAX, Columns, Double, Flags, Index, Single, column
from handoff.analytics.profile import Visit

WARM_UP: Final = 30  # points that are kept as they are until the unit is known
SILENT: Final = 40  # points about which nothing is said
_LIVES_AT: Final = np.float32(4_096)  # units; three points in a row beyond it, and the unit is too small
_UNIT_BITS_MAX: Final = 60
_USUAL_BELOW: Final = incidents.ALERT_AT / 2  # so that the points of a fault that came before its alert are not usual


@dataclass(slots=True)
class WarmUp(Columns):
    """The first points, as they came."""

    held: np.ndarray = column("byte")
    values: Double = column("double", WARM_UP)
    bins: np.ndarray = column("word", WARM_UP)
    gaps: np.ndarray = column("byte", WARM_UP)


@dataclass(slots=True)
class Scale(Columns):
    """The unit of a series: x = (value - centre) / unit. A unit of 0 is not known yet: the series has been constant."""

    centre: Double = column("double")
    unit: Double = column("double")
    seen: np.ndarray = column("long")  # points that were measured


@dataclass(slots=True)
class Memory:
    """Everything that is known about a number of series."""

    scale: Scale
    codebook: codebook.Codebook
    profile: profile.Profile
    visit: Visit
    levels: levels.Levels
    histograms: Histograms
    pools: pooling.Pools
    echoes: echoes.Echoes
    counts: counts.Counts
    silences: silence.Silences
    lasting: lasting.Lasting
    life: incidents.Life

    @classmethod
    def empty(cls, count: int) -> "Memory":
        """The memory of series of which nothing is known."""
        parts: dict[str, Any] = {name: part.empty(count) for name, part in PARTS.items()}
        return cls(**parts)

    def parts(self) -> tuple[Columns, ...]:
        """The groups of columns, in the order in which they are stored."""
        return tuple(getattr(self, name) for name in PARTS)


PARTS: Final[dict[str, type[Columns]]] = {
    "scale": Scale,
    "codebook": codebook.Codebook,
    "profile": profile.Profile,
    "visit": Visit,
    "levels": levels.Levels,
    "histograms": Histograms,
    "pools": pooling.Pools,
    "echoes": echoes.Echoes,
    "counts": counts.Counts,
    "silences": silence.Silences,
    "lasting": lasting.Lasting,
    "life": incidents.Life,
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found about one point of each series."""

    score: Single  # how anomalous the point is, for ranking; 0 while learning and where nothing was measured
    strength: Single  # above 0 where an incident opens or escalates; 1 and above should alert
    rarity: Single  # (features, series), -log10 p
    seen: np.ndarray  # points that were measured, with this one
    expected: Double  # what was expected, as a value; NaN where nothing opens or escalates
    lower: Double  # the band in which it would have been usual, likewise
    upper: Double
    is_open: Flags  # whether an incident is open
    silence: silence.Silence


class Detector:
    """The state of a number of series, and the step that moves all of them by one point."""

    def __init__(
        self,
        step_s: np.ndarray,
        memory: Memory | None = None,
        warm_up: WarmUp | None = None,
        count_events: Flags | None = None,
    ) -> None:
        """Take series with these sampling steps in seconds, new or as they were stored; which count events, if any."""
        self.step_s = np.asarray(step_s, np.float64)
        count = len(self.step_s)
        self.memory = memory or Memory.empty(count)
        self.warm_up = warm_up or WarmUp.empty(count)
        self._pools = pooling.Pace.of(self.step_s)
        self._shares_bins = profile.shares_bins(self.step_s)
        self._fine_counts = self._shares_bins & (False if count_events is None else count_events)
        self._life = incidents.Pace.of(self.step_s, self._fine_counts)
        # A silence is judged once, however fine the step: what finer steps cost other findings does not concern it.
        self._per_rarity = incidents.ALERT_AT / np.float32(silence.RARITY_OF_ALERT) / self._life.sensitivity
        self._points_that_last = lasting.points_of(self.step_s)
        self.budget = 1.0  # of alerts, as `incidents.advance` takes it

    def step(self, values: Double, bins: Index, gaps: Flags) -> Verdict:
        """Judge one point of each series, then learn it.

        Args:
            values: what was measured, NaN where nothing was.
            bins: the time of day, as `profile.bin_of` gives it.
            gaps: where points are missing before this one.
        """
        with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
            measured = np.isfinite(values)
            warm = self.warm_up.held < WARM_UP
            if warm.any():
                self._collect(values, bins, gaps, measured & warm)
            return self._judge(values, bins, gaps, measured & ~warm)

    def usual(self, bins: Index) -> tuple[Double, Double, Double]:
        """What is expected of the next point of each series if it comes at this time of day, and its band, as values.

        The band is that which a finding about the point would name; NaN while nothing is said about the series.
        """
        band = np.stack(
            self._band(profile.expect(self.memory.profile, self.memory.visit, bins), np.arange(len(self.step_s)))
        )
        band[:, self.memory.scale.seen < SILENT] = np.nan
        return band[0], band[1], band[2]

    def _collect(self, values: Double, bins: Index, gaps: Flags, new: Flags) -> None:
        """Keep the first points; once there are enough, find the unit and learn them."""
        at = np.nonzero(new)[0]
        held = self.warm_up.held[at]
        self.warm_up.values[held, at] = values[at]
        self.warm_up.bins[held, at] = bins[at]
        self.warm_up.gaps[held, at] = gaps[at]
        self.warm_up.held[at] += 1
        ready = at[self.warm_up.held[at] == WARM_UP]
        if len(ready):
            self._begin(ready)

    def _begin(self, ready: Index) -> None:
        first = self.warm_up.take(ready)
        young = Detector(self.step_s[ready])
        young.warm_up.held[:] = WARM_UP
        scale = young.memory.scale
        scale.centre = np.median(first.values, axis=0)
        scale.unit = np.abs(np.diff(first.values, axis=0)).max(axis=0)
        everywhere = np.ones(len(ready), np.bool_)
        for value, bins, gap in zip(first.values, first.bins, first.gaps, strict=True):
            young._judge(value, bins.astype(np.int64), gap > 0, everywhere)
        young.memory.histograms.phase[:] = self.memory.histograms.phase[ready]
        for part, other in zip(self.memory.parts(), young.memory.parts(), strict=True):
            part.put(ready, other)

    def _judge(self, values: Double, bins: Index, gaps: Flags, measured: Flags) -> Verdict:
        memory = self.memory
        level, seen = memory.levels, memory.scale.seen
        self._find_unit(values, measured)
        x = self._in_units(values, measured)
        levels.start(level, x, measured & (seen == 0))
        levels.bridge(level, x, gaps & measured & (seen > 0))
        before, earlier = level.last, level.previous
        distances = codebook.nearest(memory.codebook, x, before, earlier, seen)
        profile.leave(memory.profile, memory.visit, bins, gaps)
        expected = profile.expect(memory.profile, memory.visit, bins)
        residual = np.where(expected.known, x - expected.usual, np.float32(0))
        found = features.measure(level, expected, x, residual, distances, seen)
        rare = self._calibrate(found, expected.known, measured)
        score = pooling.score(memory.pools, rare, measured)
        unusual = pooling.pool(memory.pools, rare, self._pools)
        raw = np.where(measured, values, 0)
        unusual = counts.cap(memory.counts, raw, seen, unusual, float(incidents.ALERT_AT))
        is_echo = echoes.follow(memory.echoes, rare[features.BAND_OF_DAY], measured & expected.known)
        is_echo[self._pools.hourly] = False  # so few points leave no time to wait for another
        opening = np.where(is_echo, np.float32(0), unusual)
        beyond = np.where(levels.beyond_usual(level, x) | levels.leaves_range(level), opening, np.float32(0))
        lasts = lasting.follow(memory.lasting, beyond, self._points_that_last, measured & self._fine_counts)
        silent = silence.follow(memory.silences, values, measured, memory.counts.is_integer > 0)
        opening = np.maximum(opening, silent.rarity * self._per_rarity)
        strength = incidents.advance(memory.life, level, opening, lasts, residual, self._life, measured, self.budget)
        usual, lower, upper = self._band(expected, np.nonzero(strength > 0)[0])  # before this point is learnt
        codebook.learn(memory.codebook, x, before, earlier, distances[0], seen, measured)
        bounded = profile.learn(memory.profile, memory.visit, expected, bins, x, residual, measured, self._shares_bins)
        levels.learn(level, x, bounded, seen, measured, unusual < _USUAL_BELOW)
        seen += measured
        self._widen_unit(measured)
        return Verdict(
            score, strength, rare, seen.copy(), usual, lower, upper, incidents.is_open(memory.life, self._life), silent
        )

    def _band(self, expected: profile.Expected, told: Index) -> tuple[Double, Double, Double]:
        """What was expected of this moment, and the lowest and highest that would have been usual, as values.

        NaN for all series but those that are `told` of. Where the time of day is not known from an earlier day, the band is
        the range of what was not unusual, so that a fault does not become usual while it lasts.
        """
        level, scale = self.memory.levels, self.memory.scale
        band = np.full((3, len(scale.unit)), np.nan)
        if not len(told):
            return band[0], band[1], band[2]
        known = expected.known[told] & (scale.seen[told] * self.step_s[told] > profile.DAY_S)
        usual_by_day = expected.usual[told]
        margin = profile.BOUND * self.memory.profile.spread[told]
        lowest, highest = level.usual_lowest[told], level.usual_highest[told]
        usual = np.where(known, usual_by_day, np.clip(level.means[levels.LONG, told], lowest, highest))
        lower = np.where(known, np.minimum(expected.lowest[told], usual_by_day - margin), lowest)
        upper = np.where(known, np.maximum(expected.highest[told], usual_by_day + margin), highest)
        band[:, told] = scale.centre[told] + np.stack((usual, lower, upper)).astype(np.float64) * scale.unit[told]
        return band[0], band[1], band[2]

    def _calibrate(self, found: Single, known: Flags, measured: Flags) -> Single:
        histograms, seen = self.memory.histograms, self.memory.scale.seen + measured
        step = found[features.STEP]
        base = histograms.base
        np.maximum(base, step, out=base, where=measured & ((seen <= WARM_UP) | (base <= 0)))
        counted = np.empty(found.shape, np.bool_)
        counted[:] = measured & (seen > WARM_UP)
        # Zeros in their place would make the second day look like nothing ever seen.
        counted[features.SEASONAL] &= known
        rare = rarity(histograms, found, counted)
        refit(histograms, seen)
        if (seen <= SILENT).any():
            rare *= seen > SILENT
        return rare

    def _find_unit(self, values: Double, measured: Flags) -> None:
        """The first step of a series that has been constant is its unit. Until then all it remembers is 0."""
        scale = self.memory.scale
        unknown = measured & (scale.unit == 0)
        if unknown.any():
            at = np.nonzero(unknown)[0]
            scale.unit[at] = np.abs(values[at] - scale.centre[at])

    def _in_units(self, values: Double, measured: Flags) -> Single:
        scale = self.memory.scale
        x = (values - scale.centre) / np.where(scale.unit > 0, scale.unit, 1)
        return np.where(measured, np.clip(x, -HALF_MAX, HALF_MAX), self.memory.levels.last).astype(np.float32)

    def _widen_unit(self, measured: Flags) -> None:
        """Take a larger unit if the series now lives far from where it began: a float16 ends at 65,504."""
        level = self.memory.levels
        size = np.minimum(np.abs(level.last), np.abs(level.previous))
        if size.max(initial=0) > _LIVES_AT:
            at = np.nonzero(measured & (size > _LIVES_AT))[0]
            bits = np.minimum(np.ceil(np.log2(size[at])) - 6, _UNIT_BITS_MAX)
            for part in self.memory.parts():
                part.rescale(at, np.exp2(-bits).astype(np.float32))
            self.memory.scale.unit[at] *= np.exp2(bits)
