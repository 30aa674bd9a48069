"""The life of an incident."""

import numpy as np
import pytest

from handoff.analytics.incidents import Life, Pace, advance, is_open, sensitivity
from handoff.analytics.levels import SLOW, Levels

HOUR = 12  # points


class Pair:
    """Two series whose slow means have been between 0 and 1."""

    def __init__(self, step_s: float = 300) -> None:
        self.pace = Pace.of(np.full(2, step_s), np.zeros(2, np.bool_))
        self.levels, self.life = Levels.empty(2), Life.empty(2)
        self.levels.slow_lowest[:], self.levels.slow_highest[:], self.levels.means[SLOW] = 0, 1, 0.5

    def strongest(
        self, unusual: float, points: int = 1, toward: tuple[float, float] = (1, 1), lasts: float = 0, budget: float = 1
    ) -> list[float]:
        """The greatest strength of each in so many points, all as unusual as this."""
        now, lasting = np.full(2, unusual, np.float32), np.full(2, lasts, np.float32)
        residual, measured = np.array(toward, np.float32), np.ones(2, np.bool_)
        found = [
            advance(self.life, self.levels, now, lasting, residual, self.pace, measured, budget).copy()
            for _ in range(points)
        ]
        return np.max(found, axis=0).tolist()

    def tell(self, unusual: float, points: int = 1, toward: tuple[float, float] = (1, 1)) -> list[bool]:
        """Whether each told anything in so many points, all as unusual as this."""
        return [it > 0 for it in self.strongest(unusual, points, toward)]


def test_a_level_that_left_its_band_is_told_again_only_if_it_gets_half_as_bad_again_or_after_three_days() -> None:
    pair = Pair()
    assert pair.tell(12) == [True, True]
    pair.levels.means[SLOW, 0] = 5  # the first has a new level, the second does not
    pair.levels.slow_highest[0] = 5
    assert pair.tell(0.1, 250) == [False, False]
    assert pair.tell(13, toward=(-1, -1)) == [False, True]
    assert pair.tell(19.6, toward=(-1, -1)) == [True, True]
    assert pair.tell(0.1, 3 * 24 * HOUR) == [False, False]
    assert pair.tell(13) == [True, True]


def test_what_deviates_the_same_way_within_22_hours_is_told_again_only_if_it_is_half_as_bad_again() -> None:
    pair = Pair()
    assert pair.tell(12) == [True, True]
    assert pair.tell(0.1, 21 * HOUR) == [False, False]
    assert pair.tell(13, toward=(1, -1)) == [False, True]
    assert pair.tell(18.1) == [True, True]
    assert pair.tell(0.1, 23 * HOUR) == [False, False]
    assert pair.tell(13) == [True, True]


def test_while_the_level_moves_further_the_same_way_the_incident_stays_open_and_is_not_told_again_for_two_weeks() -> None:
    pair = Pair()
    assert pair.tell(12) == [True, True]
    for half_day in range(27):
        pair.levels.means[SLOW, 0] = pair.levels.slow_highest[0] = 2 + half_day
        assert pair.tell(0.1, 12 * HOUR - 1) == [False, False]
        is_second = half_day % 2 == 1
        assert pair.tell(12 if is_second else 0.1) == [False, is_second]
        assert is_open(pair.life, pair.pace)[0]
    pair.levels.means[SLOW, 0] = pair.levels.slow_highest[0] = 40
    assert pair.tell(0.1, 24 * HOUR) == [False, False]
    assert pair.tell(12) == [True, True]


def test_what_has_lasted_is_judged_as_if_steps_were_not_fine_unless_it_was_told() -> None:
    pair = Pair(step_s=60)
    assert pair.strongest(14) == pytest.approx([0.938] * 2)  # nobody is told
    assert pair.strongest(16) == [0, 0]
    assert pair.strongest(16, lasts=9.9) == [0, 0]
    assert pair.strongest(16, lasts=10.4) == pytest.approx([1.072, 1.072])
    assert pair.strongest(16, lasts=16, points=20, toward=(1, -1)) == [0, 0]


def test_what_was_not_clear_enough_to_be_told_holds_nothing_back_and_is_no_alert() -> None:
    pair = Pair(step_s=60)
    assert [pair.strongest(it)[0] for it in (10, 12.1, 14.6)] == pytest.approx([0.67, 0.8107, 0.9782])
    pair.levels.means[SLOW] = pair.levels.slow_highest[:] = 5
    assert not is_open(pair.life, pair.pace).any()
    assert pair.strongest(17.6) == pytest.approx([1.1792] * 2)  # 1.0919 after three alerts
    assert is_open(pair.life, pair.pace).all()
    pair.levels.means[SLOW] = pair.levels.slow_highest[:] = 9
    assert pair.strongest(26, toward=(-1, -1)) == [0, 0]
    assert pair.strongest(27, toward=(-1, -1)) == pytest.approx([1.809] * 2)


def test_with_a_smaller_budget_a_series_that_alerts_again_has_to_be_clearer_sooner() -> None:
    def strengths(budget: float) -> list[float]:
        pair = Pair()
        found: list[float] = []
        for direction in (1, -1, 1, -1, 1):
            found.append(pair.strongest(12, toward=(direction, direction), budget=budget)[0])
            pair.tell(0.1, 23 * HOUR)
        return found

    usual, double, tenth = strengths(1), strengths(2), strengths(0.1)
    assert usual[:3] == pytest.approx([1.2] * 3)
    assert usual[3] < 1.2
    assert double == pytest.approx([1.2] * 5)
    assert tenth[0] == usual[0]
    assert all(less < more for less, more in zip(tenth[1:], usual[1:], strict=True))


def test_finer_steps_have_to_be_clearer() -> None:
    steps, may_last = np.array([15.0, 60.0, 60.0, 300.0, 3_600.0]), np.array([False, False, True, False, False])
    assert sensitivity(steps, may_last).tolist() == np.array([0.67, 0.67, 0.603, 1, 1], np.float32).tolist()
