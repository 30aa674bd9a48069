"""The detector as a whole: what it says, and what must not change what it says."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handoff.analytics.detector import Detector
from handoff.analytics.findings import explain, readable
from handoff.analytics.levels import RESIDUAL
from handoff.analytics.state import BYTES_MAX, GROWN_BYTES, pack, unpack
from tests.analytics.series import DAY, STEP_S, daily, scores, stamps, strengths, watch

QUIET = daily(6 * DAY, 6, seed=1)
AT = 4 * DAY
STORED = {version: (Path(__file__).parent / f"state-{version}.bin").read_bytes() for version in range(1, 7)}


def alerts(values: np.ndarray, **how: Any) -> list[list[int]]:
    found = strengths(watch(values, **how)[0]) >= 1
    return [np.flatnonzero(found[:, number]).tolist() for number in range(values.shape[1])]


def test_a_drop_a_shift_and_a_spike_that_lasts_alert_within_a_quarter_of_an_hour_and_quiet_series_do_not() -> None:
    values = QUIET.copy()
    values[AT : AT + 36, 0] = 0
    values[AT:, 1] += 60
    values[AT : AT + 3, 2] += 150
    found = alerts(values)
    for faulty in found[:3]:
        assert faulty[0] in range(AT, AT + 3)
        assert len(faulty) <= 2  # it opens, and escalates at most once
    assert found[3:] == [[], [], []]


@settings(max_examples=2, deadline=None)
@given(st.lists(st.integers(0, 699), max_size=4), st.integers(0, 1_000))
def test_a_detector_that_was_stored_and_read_goes_on_with_the_same_bits(restarts: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = daily(700, 5, seed)
    values[:, 1] = rng.poisson(0.02, 700)
    values[:, 2] = 7.0
    values[400:, 2] = 9.0
    values[300:, 4] *= 1e6  # takes a larger unit
    values[rng.random(values.shape) < 0.1] = np.nan
    plain, kept = watch(values)
    again, unpacked = watch(values, restart_at=restarts)
    assert scores(plain).tobytes() == scores(again).tobytes()
    assert strengths(plain).tobytes() == strengths(again).tobytes()
    assert pack(kept) == pack(unpacked)


def test_the_state_of_a_series_is_small_has_a_version_and_nothing_else_is_accepted() -> None:
    (blob,) = pack(watch(QUIET[:100, :1])[1])
    assert len(blob) == GROWN_BYTES <= BYTES_MAX
    assert len(pack(watch(QUIET[:20, :1])[1])[0]) < 500
    with pytest.raises(ValueError, match="has version 9; this program reads versions 1 to 7"):
        unpack([bytes((9,)) + blob[1:]], np.array([300.0]))
    with pytest.raises(ValueError, match="bytes instead of"):
        unpack([blob[:-1]], np.array([300.0]))


@pytest.mark.parametrize("version", STORED)
def test_a_state_that_an_earlier_version_stored_goes_on_as_if_this_version_had_stored_it(version: int) -> None:
    values = daily(4 * DAY, 1, seed=7)
    stored = STORED[version]
    old = unpack([stored], np.array([float(STEP_S)]))  # after three days of the same values
    _, new = watch(values[: 3 * DAY])
    today = values[3 * DAY :]
    today[144:] = 0
    found_by_old, found_by_new = watch(today, detector=old)[0], watch(today, detector=new)[0]
    assert np.median(np.abs(scores(found_by_old) - scores(found_by_new))) < 0.1
    assert strengths(found_by_old)[:144].max() < 1
    assert strengths(found_by_old)[144:147].max() >= 1
    with pytest.raises(ValueError, match=f"has {len(stored) - 1} bytes instead of {len(stored)}"):
        unpack([stored[:-1]], np.array([300.0]))


@settings(max_examples=2, deadline=None)
@given(st.permutations(range(6)), st.integers(1, 6))
def test_a_series_says_the_same_whatever_other_series_stand_beside_it(order: list[int], width: int) -> None:
    chosen = order[:width]
    assert scores(watch(QUIET[:500, chosen])[0]).tobytes() == scores(watch(QUIET[:500])[0])[:, chosen].tobytes()


@settings(max_examples=2, deadline=None)
@given(st.integers(-20, 40), st.sampled_from([-1_000.0, 0.0, 4_096.0]))
def test_neither_unit_nor_zero_point_changes_what_is_found(power: int, shift: float) -> None:
    values = np.round(QUIET[: 3 * DAY, :2] * 64) / 64  # so that shifting them is exact
    values[2 * DAY :, 0] += 80
    expected = scores(watch(values)[0])
    assert np.allclose(scores(watch((values + shift) * 2.0**power)[0]), expected, rtol=1e-3, atol=1e-3)


@settings(max_examples=2, deadline=None)
@given(st.integers(0, 1_000), st.floats(0.05, 0.6))
def test_missing_points_score_nothing_teach_nothing_and_alert_nobody(seed: int, share: float) -> None:
    values = QUIET[: 3 * DAY, :4].copy()
    gone = np.random.default_rng(seed).random(values.shape) < share
    values[gone] = np.nan
    verdicts, _ = watch(values)
    assert not scores(verdicts)[gone].any()
    assert not strengths(verdicts)[gone].any()
    assert verdicts[-1].seen.tolist() == np.isfinite(values).sum(axis=0).tolist()


def test_infinite_and_huge_values_are_survived() -> None:
    values = QUIET[:400, :3].copy()
    values[100, 0], values[100, 1], values[100:, 2] = np.inf, 1e300, 1e200
    assert np.isfinite(scores(watch(values)[0])).all()


def test_a_week_of_silence_is_no_change_and_what_comes_after_it_is_known() -> None:
    values = np.concatenate([QUIET, np.full((7 * DAY, 6), np.nan), QUIET])
    assert [it for it in alerts(values) if it] == []


def test_the_hour_of_daylight_saving_moves_the_day_of_nobody_who_gives_local_time() -> None:
    t = stamps(8 * DAY)
    change = 6 * DAY
    offset = np.where(np.arange(len(t)) < change, 7_200, 3_600)
    hour = ((t + offset) % 86_400) // 3_600
    rng = np.random.default_rng(5)
    office = (np.where((hour >= 9) & (hour < 17), 100.0, 10.0) + rng.normal(0, 2, len(t)))[:, None]
    assert not [at for at in alerts(office, offset_s=offset)[0] if at >= change]
    assert [at for at in alerts(office)[0] if at >= change]


def test_a_constant_that_steps_alerts_and_a_constant_stays_silent() -> None:
    values = np.full((3 * DAY, 2), 7.0)
    values[2 * DAY :, 1] = 9.0
    quiet, stepped = alerts(values)
    assert quiet == []
    assert stepped
    assert stepped[0] in range(2 * DAY, 2 * DAY + 3)


def test_a_finding_says_what_was_expected_what_spoke_and_why_in_one_sentence() -> None:
    values = QUIET[:, :1].copy()
    values[AT : AT + 12] = 0
    verdicts, _ = watch(values)
    at = int(np.flatnonzero(strengths(verdicts)[:, 0] >= 1)[0])
    finding = explain(verdicts[at], 0, 0.0, "requests per second")
    assert finding.lower < finding.expected < finding.upper
    assert abs(finding.expected - QUIET[at, 0]) < 20
    assert finding.value < finding.lower
    assert finding.strength >= 1
    assert 0 < finding.confidence < 1
    assert dict(finding.spoke)["time of day"] > 3
    assert finding.sentence.startswith("requests per second is 0; ")
    assert "it is usually higher at this time of day" in finding.sentence


@pytest.mark.parametrize("step_s", [STEP_S, 60])  # with a minute, five points have the same time of day
def test_on_the_first_day_a_fault_does_not_become_usual_while_it_lasts(step_s: int) -> None:
    values = daily(DAY, 4, seed=9)
    values[144:150] += 100
    values[150:200] += 200  # worse: it is told again, while what it did first has been seen
    verdicts, _ = watch(values, step_s=step_s)
    told = [(at, number) for at, verdict in enumerate(verdicts) for number in np.flatnonzero(verdict.strength >= 1)]
    assert {number for at, number in told if at in range(144, 150)} >= ({0, 1, 2, 3} if step_s == STEP_S else {1, 2})
    assert step_s != STEP_S or any(at >= 150 for at, _ in told)
    before = values[:144]
    for at, number in told:
        verdict = verdicts[at]
        assert verdict.lower[number] <= verdict.expected[number] <= verdict.upper[number] < values[at, number]
        assert np.quantile(before[:, number], 0.95) < verdict.upper[number] < before[:, number].max() + 50


def test_no_new_series_alerts_because_its_second_day_begins() -> None:
    rng = np.random.default_rng(2)
    assert [it for it in alerts(rng.poisson(3, (4 * DAY, 12)).astype(float)) if it] == []


def test_a_state_that_is_empty_is_a_new_series() -> None:
    fresh = Detector(np.array([float(STEP_S)]))
    assert pack(unpack([b""], np.array([float(STEP_S)]))) == pack(fresh)


def test_a_level_shift_is_told_once_and_held_until_the_new_level_is_accepted() -> None:
    values = daily(12 * DAY, 8, seed=3)
    values[6 * DAY :] += 60
    verdicts, _ = watch(values)
    found = strengths(verdicts) >= 1
    assert found[6 * DAY : 6 * DAY + 3].any(axis=0).all()
    assert found[7 * DAY :].sum() <= 1
    open_at = np.array([it.is_open for it in verdicts])
    assert open_at[7 * DAY].sum() >= 6
    assert not open_at[-1].any()


def test_a_leak_is_told_once_however_long_the_level_goes_on_rising_and_a_drop_in_it_is_told() -> None:
    values = daily(14 * DAY, 8, seed=5)
    values[8 * DAY :] += np.linspace(0, 130, 6 * DAY)[:, None]
    values[-DAY // 2 :, :4] = 0
    verdicts, _ = watch(values)
    found = strengths(verdicts) >= 1
    assert found[8 * DAY : 8 * DAY + 480].any(axis=0).all()  # within 40 hours
    assert found[8 * DAY : -DAY // 2].sum() <= 9
    assert found[-DAY // 2 :].any(axis=0).tolist() == [True] * 4 + [False] * 4
    assert np.array([it.is_open for it in verdicts])[11 * DAY :].mean() > 0.9


def test_where_odd_points_come_alone_the_point_after_one_is_no_alert_and_a_shift_still_is() -> None:
    rng = np.random.default_rng(3)
    values = 1_000 + 10 * rng.standard_t(3, (8 * DAY, 40))
    values[7 * DAY :, 0] += 120
    found = strengths(watch(values)[0]) >= 1
    after = found[4 * DAY :, 1:] & (np.abs(values[4 * DAY :, 1:] - 1_000) < 20)
    assert after.sum() <= 2  # in 22 weeks of series; 8 if echoes alert
    assert found[7 * DAY : 7 * DAY + 3, 0].any()


def test_hours_that_are_odd_alone_are_noise_and_hours_that_confirm_one_another_are_told() -> None:
    rng = np.random.default_rng(6)
    wave = 100 + 20 * np.sin(np.arange(35 * 24)[:, None] * (2 * np.pi / 24))
    values = wave + 3 * rng.standard_t(3, (35 * 24, 24))
    values[30 * 24 :, 0] += 40
    verdicts, _ = watch(values, step_s=3_600)
    found = strengths(verdicts) >= 1
    assert found[200:, 1:].sum() <= 12  # on 23 series in 4 weeks
    assert found[30 * 24 : 30 * 24 + 3, 0].any()


def test_by_the_minute_a_shift_is_told_while_it_lasts_although_its_points_share_a_bin_of_the_day() -> None:
    day = 86_400 // 60
    values = np.random.default_rng(4).normal(0, 1, (3 * day, 40))
    fault = slice(5 * day // 2, 5 * day // 2 + 5)
    values[fault] += 6
    found = strengths(watch(values, step_s=60)[0]) >= 1
    assert found[fault].any(axis=0).sum() >= 32  # 14 of 40 if each point moves the band that the next one meets
    assert not found[day : fault.start].any()


def test_a_busy_count_by_the_minute_that_falls_to_a_tenth_is_told_in_every_series_and_quiet_ones_are_not() -> None:
    day = 86_400 // 60
    values = np.random.default_rng(1).poisson(61, (2 * day + 30, 24)).astype(float)
    values[2 * day :, :12] = np.random.default_rng(2).poisson(6, (30, 12))
    found = strengths(watch(values, step_s=60, count_events=True)[0]) >= 1
    assert found[2 * day : 2 * day + 30, :12].any(axis=0).all()
    assert not found[day : 2 * day].any()  # on the first day hardly anything is known yet
    assert not found[:, 12:].any()


def test_a_small_count_by_the_minute_is_told_by_where_it_takes_the_level_although_no_minute_of_it_is_rare() -> None:
    day = 86_400 // 60
    values = np.random.default_rng(1).poisson(10, (2 * day + 30, 36)).astype(float)
    values[2 * day :, :24] = np.random.default_rng(2).poisson(1, (30, 24))
    found = strengths(watch(values, step_s=60, count_events=True)[0]) >= 1
    assert found[2 * day :, :24].any(axis=0).sum() >= 16  # 6 if every minute has to lie beyond what was usual
    assert not found[:, 24:].any()


def test_a_count_whose_rate_drifts_as_it_does_is_hardly_ever_told() -> None:
    rng = np.random.default_rng(5)
    points, memory = 3 * 1_440, 30
    drift = np.zeros((points, 60))
    for at in range(1, points):
        drift[at] = (1 - 1 / memory) * drift[at - 1] + rng.normal(0, 0.15 * np.sqrt(2 / memory), 60)
    found = strengths(watch(rng.poisson(61 * np.exp(drift)).astype(float), step_s=60, count_events=True)[0]) >= 1
    assert found[1_440:].sum() <= 6  # in 17 weeks of series; 18 if what lasts need not lie beyond what was usual


def test_with_five_minutes_or_more_between_points_it_makes_no_difference_whether_they_count_events() -> None:
    values = np.random.default_rng(1).poisson(61, (2 * DAY, 24)).astype(float)
    values[DAY + 100 :] *= np.linspace(0.5, 0.95, 24)
    found = [strengths(watch(values, count_events=it)[0]) for it in (True, False)]
    assert found[0].any()
    assert found[0].tobytes() == found[1].tobytes()


def test_the_residual_has_a_usual_size_from_the_second_day_on() -> None:
    _, detector = watch(QUIET[: 2 * DAY])
    assert (detector.memory.levels.squares[RESIDUAL] > 0).all()


def test_numbers_are_written_as_people_write_them() -> None:
    assert readable((372_194.7, 673.37, 46.8, 44_060)) == ["372,200", "673.4", "46.8", "44,060"]
    assert readable((2, 0, -1.376e-17, 1)) == ["2", "0", "0", "1"]
    assert readable((0.04325, 0.003638, 1.5e-7, 0)) == ["0.04325", "0.003638", "1.5e-07", "0"]
