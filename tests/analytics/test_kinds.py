"""How counters, ratios, durations and counts are prepared for the detector, which must know what counts events."""

import numpy as np
import pytest

from handoff.analytics.kinds import Absence, Kind, Season, level_of, rate, season_of, silent
from handoff.analytics.replay import replay
from handoff.analytics.watch import Series, go_on
from tests.analytics.series import DAY, daily, stamps

T = np.arange(6, dtype=np.int64) * 10
NAN = float("nan")


def test_a_counter_becomes_a_rate_that_neither_a_restart_nor_a_missing_point_makes_negative() -> None:
    total = np.array([100.0, 120.0, NAN, 160.0, 30.0, 30.0])
    assert np.array_equal(rate(T, total), [NAN, 2.0, NAN, 2.0, 3.0, 0.0], equal_nan=True)
    assert level_of(Kind.COUNTER, Absence.ZERO, T, total).tolist() == [0.0, 2.0, 0.0, 2.0, 3.0, 0.0]


def test_one_failure_of_one_call_is_no_ratio_of_one() -> None:
    calls = np.array([1_000.0, 1_000.0, 1.0, 1_000.0, 0.0, NAN])
    failed = np.array([10.0, 10.0, 1.0, 500.0, 0.0, 0.0])
    share = level_of(Kind.RATIO, Absence.ZERO, T, failed, calls)
    assert share[2] == pytest.approx(0.1, abs=0.003)  # (1 + 10 * 0.01) / (1 + 10)
    assert share[3] == pytest.approx(0.495, abs=0.01)
    assert np.isnan(share[4:]).all()
    with pytest.raises(ValueError, match="needs its denominator"):
        level_of(Kind.RATIO, Absence.GAP, T, failed)


def test_a_duration_twice_as_long_is_as_far_away_as_one_half_as_long() -> None:
    usual, longer, shorter, never = level_of(Kind.DURATION, Absence.ZERO, T[:4], np.array([0.2, 0.4, 0.1, 0.0]))
    assert longer - usual == pytest.approx(usual - shorter)
    assert np.isnan(never)


def test_absence_is_zero_or_a_gap_or_itself_an_alert() -> None:
    values = np.array([1.0, NAN])
    assert level_of(Kind.COUNT, Absence.ZERO, T[:2], values).tolist() == [1.0, 0.0]
    assert np.isnan(level_of(Kind.COUNT, Absence.GAP, T[:2], values)[1])
    since, step = np.array([200.0, 240.0]), np.array([60.0, 60.0])
    assert silent(Absence.ALERT, since, step).tolist() == [False, True]
    assert not silent(Absence.GAP, since, step).any()


def test_the_season_is_a_day_a_week_or_none_and_not_believed_too_early() -> None:
    t = stamps(21 * DAY)
    wave = daily(21 * DAY, 1, seed=1)[:, 0]
    weekend = (t // 86_400 + 4) % 7 >= 5
    noise = np.random.default_rng(1).normal(0, 1, len(t))
    assert season_of(t, wave) is Season.DAY
    assert season_of(t, np.where(weekend, 0.2, 1.0) * wave) is Season.WEEK
    assert season_of(t, noise) is Season.NONE
    assert season_of(t[:DAY], wave[:DAY]) is Season.NONE
    assert season_of(t[:0], wave[:0]) is Season.NONE


@pytest.mark.parametrize("how", ["worker", "backtest"])
def test_series_that_count_events_are_judged_as_such(how: str) -> None:
    """All of those that fall to a tenth are told, though not all of the same numbers as levels."""
    day, count = 1_440, 12
    rng = np.random.default_rng(4)
    x = np.tile(np.vstack((rng.poisson(20, (2 * day, count)), rng.poisson(2, (30, count)))).astype(float), 2)
    names, kinds = [str(number) for number in range(2 * count)], [Kind.COUNT] * count + [Kind.LEVEL] * count
    fell_at = 2 * day * 60
    if how == "worker":
        series = [Series(*it, Absence.ZERO) for it in zip(names, kinds, strict=True)]
        told = {it.place for it in go_on(series, 0, x, np.full(x.shape, np.nan)).found if it.t >= fell_at}
    else:
        t = np.arange(len(x)) * 60
        found = replay(t, x, np.zeros_like(t), names, kinds)
        told = {place for place, it in enumerate(found) if any(at >= fell_at for at, _ in it.alerts())}
    assert told >= set(range(count))
    assert len(told) < 2 * count
